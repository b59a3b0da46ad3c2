//! A client that changes a repository in every way there is until the gateway dies, and writes down what it was told.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::{
    dice::Dice,
    gateway::USER,
    image::{Content, Image, MANIFEST},
    ledger::{End, Known, Ledger, Upload},
    wire::{Answer, Wire, with_query},
};

/// One client.
#[derive(Debug)]
pub struct Pusher {
    dice: Dice,
    /// Where it pushes, moves and deletes.
    own: Ledger,
    /// Where it mounts from there.
    mounted: Ledger,
    count: usize,
}

impl Pusher {
    /// The pusher of this number; what it does follows from `seed`.
    #[must_use]
    pub fn new(number: usize, seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let skipped = dice.bytes(8 * (number + 1));
        let seed = skipped.iter().rev().take(8);
        let seed = seed.fold(0, |seed, byte| (seed << 8) | u64::from(*byte));
        Self {
            dice: Dice::new(seed),
            own: Ledger::new(format!("apps/crash-{number}")),
            mounted: Ledger::new(format!("apps/mounted-{number}")),
            count: 0,
        }
    }

    /// Works until `stop`, or until a request is not answered or fails for the gateway's own reasons.
    pub fn work(&mut self, port: u16, stop: &AtomicBool, acknowledged: &AtomicUsize) {
        let wire = Wire::basic(port, USER);
        while !stop.load(Ordering::Relaxed) {
            if self.step(&wire).is_none() {
                return;
            }
            acknowledged.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Holds what is there against what was told.
    ///
    /// # Panics
    /// See [`Ledger::check`].
    pub fn check(&mut self, port: u16, end: End, everything: bool) {
        let wire = Wire::basic(port, USER);
        self.own.check(&wire, end, everything);
        self.mounted.check(&wire, end, everything);
    }

    /// One change; `None` when nobody said that it happened.
    fn step(&mut self, wire: &Wire) -> Option<()> {
        self.count += 1;
        let nth = self.dice.below(1000);
        match self.dice.below(100) {
            0..35 => {
                let tag = format!("t{}", self.count);
                self.push(wire, &tag).map(drop)
            }
            35..60 => {
                let tag = format!("moving-{}", nth % 3);
                self.push(wire, &tag).map(drop)
            }
            60..70 => match self.own.some_tag(nth) {
                Some(tag) => self.delete_tag(wire, &tag),
                None => Some(()),
            },
            70..78 => match self.own.some_image(nth) {
                Some(image) => self.delete_image(wire, &image),
                None => Some(()),
            },
            78..84 => self.push_and_unlink_blob(wire),
            84..90 => self.leave_upload_open(wire),
            _ => self.mount_image(wire),
        }
    }

    fn content(&mut self) -> Content {
        let length = 2_000 + self.dice.below(30_000);
        Content::new(self.dice.bytes(length))
    }

    fn push(&mut self, wire: &Wire, tag: &str) -> Option<Image> {
        let image = Image::of_layers(vec![self.content()]);
        for blob in image.blobs() {
            let chunked = self.dice.below(2) == 0;
            self.own.blob(blob, Known::Unknown);
            upload(wire, &self.own.repository, blob, chunked)?;
            self.own.blob(blob, Known::There);
        }
        self.own.image(&image, Known::Unknown);
        self.own.tag_may(tag, Some(&image.manifest.digest));
        put_manifest(wire, &self.own.repository, tag, &image)?.expect(201);
        self.own.image(&image, Known::There);
        self.own.tag(tag, Some(&image.manifest.digest));
        Some(image)
    }

    fn delete_tag(&mut self, wire: &Wire, tag: &str) -> Option<()> {
        self.own.tag_may(tag, None);
        let path = format!("/v2/{}/manifests/{tag}", self.own.repository);
        ask(wire, "DELETE", &path, "")?.expect(202);
        self.own.tag(tag, None);
        Some(())
    }

    fn delete_image(&mut self, wire: &Wire, image: &Image) -> Option<()> {
        self.own.image(image, Known::Unknown);
        let (repository, digest) = (&self.own.repository, &image.manifest.digest);
        let path = format!("/v2/{repository}/manifests/{digest}");
        ask(wire, "DELETE", &path, "")?.expect(202);
        self.own.image(image, Known::Gone);
        Some(())
    }

    fn push_and_unlink_blob(&mut self, wire: &Wire) -> Option<()> {
        let blob = self.content();
        self.own.blob(&blob, Known::Unknown);
        upload(wire, &self.own.repository, &blob, false)?;
        self.own.blob(&blob, Known::There);
        if self.dice.below(2) == 0 {
            self.own.blob(&blob, Known::Unknown);
            let path = format!("/v2/{}/blobs/{}", self.own.repository, blob.digest);
            ask(wire, "DELETE", &path, "")?.expect(202);
            self.own.blob(&blob, Known::Gone);
        }
        Some(())
    }

    fn leave_upload_open(&mut self, wire: &Wire) -> Option<()> {
        let content = self.content();
        let path = format!("/v2/{}/blobs/uploads/", self.own.repository);
        let mut location = ask(wire, "POST", &path, "")?.has(202).location();
        let mut upload = Upload {
            location: location.clone(),
            content,
            acknowledged: 0,
            sent: 0,
        };
        for _chunk in 0..2 {
            let chunk = upload.content.bytes.slice(upload.sent..upload.sent + 900);
            upload.sent += chunk.len();
            let Some(answer) = ask(wire, "PATCH", &location, chunk) else {
                self.own.uploads.push(upload);
                return None;
            };
            location = answer.has(202).location();
            upload.acknowledged = upload.sent;
        }
        self.own.uploads.push(upload);
        Some(())
    }

    /// Mounts what it pushed into the other repository, where two tags move together.
    fn mount_image(&mut self, wire: &Wire) -> Option<()> {
        let image = self.push(wire, "mounted")?;
        let from = &self.own.repository;
        for blob in image.blobs() {
            self.mounted.blob(blob, Known::Unknown);
            let (to, digest) = (&self.mounted.repository, &blob.digest);
            let path = format!("/v2/{to}/blobs/uploads/?mount={digest}&from={from}");
            ask(wire, "POST", &path, "")?.expect(201);
            self.mounted.blob(blob, Known::There);
        }
        let digest = image.manifest.digest.clone();
        let tags = ["one", "other"];
        self.mounted.image(&image, Known::Unknown);
        for tag in tags {
            self.mounted.tag_may(tag, Some(&digest));
        }
        let reference = format!("{digest}?tag={}&tag={}", tags[0], tags[1]);
        put_manifest(wire, &self.mounted.repository, &reference, &image)?.expect(201);
        self.mounted.image(&image, Known::There);
        for tag in tags {
            self.mounted.tag(tag, Some(&digest));
        }
        Some(())
    }
}

/// An answer that tells what happened; `None` when there is none, or only that the gateway could not.
fn ask(wire: &Wire, method: &str, path: &str, body: impl Into<bytes::Bytes>) -> Option<Answer> {
    let answer = wire.try_send(method, path, &[], body).ok()?;
    (!answer.status.is_server_error()).then_some(answer)
}

fn put_manifest(wire: &Wire, repository: &str, reference: &str, image: &Image) -> Option<Answer> {
    let path = format!("/v2/{repository}/manifests/{reference}");
    let headers = [("content-type", MANIFEST)];
    let bytes = image.manifest.bytes.clone();
    let answer = wire.try_send("PUT", &path, &headers, bytes).ok()?;
    (!answer.status.is_server_error()).then_some(answer)
}

fn upload(wire: &Wire, repository: &str, blob: &Content, chunked: bool) -> Option<()> {
    let path = format!("/v2/{repository}/blobs/uploads/");
    let mut location = ask(wire, "POST", &path, "")?.has(202).location();
    let mut sent = 0;
    if chunked {
        sent = blob.bytes.len() / 2;
        let answer = ask(wire, "PATCH", &location, blob.bytes.slice(..sent))?;
        location = answer.has(202).location();
    }
    let closing = with_query(&location, &format!("digest={}", blob.digest));
    let rest = blob.bytes.slice(sent..);
    ask(wire, "PUT", &closing, rest)?.expect(201);
    Some(())
}
