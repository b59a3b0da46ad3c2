//! The proxy cache while it is cold: a blob through it against the same blob from the upstream itself.

use tests::{Wire, image::Content};

use crate::{
    load::pull,
    peers,
    table::{Table, median},
};

const BLOB_BYTES: usize = 64 << 20;
const ROUNDS: usize = 7;

pub(crate) fn measure(table: &mut Table) {
    let upstream = peers::registry();
    let mirror = format!("  up: {{ url: \"http://127.0.0.1:{}\" }}\n", upstream.port);
    let (gateway, _tls) = peers::gantry(&mirror, "");
    let wire = Wire::anonymous(upstream.port);
    let size = BLOB_BYTES as u64;
    let [mut direct_first, mut direct_total, mut first, mut total] = [const { Vec::new() }; 4];
    for _round in 0..ROUNDS {
        let blob = Content::random(BLOB_BYTES);
        wire.push_blob("big/blob", &blob).expect(201);
        // Another's first look at a fresh file is nobody's cost.
        pull(
            &upstream.url(&format!("/v2/big/blob/blobs/{}", blob.digest)),
            1,
            size,
            &[],
        );
        let direct = pull(
            &upstream.url(&format!("/v2/big/blob/blobs/{}", blob.digest)),
            1,
            size,
            &[],
        );
        let through = format!(
            "http://{}/v2/up/big/blob/blobs/{}",
            gateway.host(),
            blob.digest
        );
        let through = pull(&through, 1, size, &[]);
        direct_first.push(direct.0 * 1e3);
        direct_total.push(direct.1 * 1e3);
        first.push(through.0 * 1e3);
        total.push(through.1 * 1e3);
    }
    let direct = median(direct_first);
    table.ratio(
        "cold pull-through of 64 MiB, ms",
        median(total),
        ("direct", median(direct_total)),
        1.05,
        &[],
    );
    let later = median(first) - direct;
    table.limit(
        "cold first byte after direct's",
        "ms",
        later,
        10.0,
        &format!("direct {direct:.1} ms"),
    );
}
