-- A value or a counter weighs 64 bytes beside its key and its bytes. What the buckets take is counted anew when the file is opened.

DROP TRIGGER entry_made;
DROP TRIGGER entry_gone;
DROP TRIGGER counter_made;
DROP TRIGGER counter_gone;

CREATE TRIGGER entry_made AFTER INSERT ON entries BEGIN
    INSERT INTO usage VALUES (new.bucket, octet_length(new.key) + octet_length(new.value) + 64)
    ON CONFLICT DO UPDATE SET bytes = bytes + excluded.bytes;
END;

CREATE TRIGGER entry_gone AFTER DELETE ON entries BEGIN
    UPDATE usage SET bytes = bytes - octet_length(old.key) - octet_length(old.value) - 64 WHERE bucket = old.bucket;
END;

CREATE TRIGGER counter_made AFTER INSERT ON counters BEGIN
    INSERT INTO usage VALUES (new.bucket, octet_length(new.key) + 64)
    ON CONFLICT DO UPDATE SET bytes = bytes + excluded.bytes;
END;

CREATE TRIGGER counter_gone AFTER DELETE ON counters BEGIN
    UPDATE usage SET bytes = bytes - octet_length(old.key) - 64 WHERE bucket = old.bucket;
END;
