-- As what a manifest names content: 'blob', 'child' or 'elsewhere' (a layer with urls). What was stored before did not say that a layer
-- lies elsewhere, so it counts as the image's own, as it did until now.

ALTER TABLE manifest_references ADD COLUMN named TEXT NOT NULL DEFAULT 'blob';

UPDATE manifest_references SET named = 'child' WHERE EXISTS (
    SELECT 1 FROM manifests
    WHERE manifests.repository = manifest_references.repository AND manifests.digest = manifest_references.manifest
    AND media_type IN ('application/vnd.oci.image.index.v1+json', 'application/vnd.docker.distribution.manifest.list.v2+json')
);
