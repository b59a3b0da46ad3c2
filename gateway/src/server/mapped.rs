//! Blobs as memory that nobody reads: body frames that the connection recognizes by their address and sends from their file.
//!
//! Owns the mappings of one connection. The mapping is real, so a frame that takes another way to the socket is still the right bytes;
//! sendfile is only the faster way. Invariant: an address is found here only while its mapping lives.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use gantry_storage::Blob;
use memmap2::{Mmap, MmapOptions};

/// The mapped parts of one connection's bodies.
#[derive(Debug, Default)]
pub struct Mappings {
    /// Few: hyper holds one frame, and the next. Held for single operations, never over an await.
    entries: Mutex<Vec<Entry>>,
}

#[derive(Debug)]
struct Entry {
    start: usize,
    length: usize,
    part: Part,
}

/// Where bytes of memory lie in a file.
#[derive(Clone, Debug)]
pub(super) struct Part {
    /// The blob, whose [`Blob::file`] was there when it was mapped.
    pub(super) blob: Arc<dyn Blob>,
    /// The offset in the file.
    pub(super) offset: u64,
}

impl Mappings {
    fn entries(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Maps `length` bytes of a blob at `offset`; `None` when it has no file. Touches no page and waits for no disk.
    ///
    /// # Errors
    /// The system's, when there is no address space.
    pub fn map(
        self: &Arc<Self>,
        blob: &Arc<dyn Blob>,
        offset: u64,
        length: usize,
    ) -> io::Result<Option<Bytes>> {
        let Some(file) = blob.file() else {
            return Ok(None);
        };
        #[expect(
            unsafe_code,
            reason = "a mapping's bytes are only as constant as its file"
        )]
        // SAFETY: the part was written before it could be named: it lies in a published blob, or in what a staging file says it has. Such
        // bytes are never written or cut afterwards, and only ever unlinked, which leaves an open file its pages. Should somebody else cut one, the server still does not read these bytes:
        // `Wire` hands their file to sendfile, and a kernel that reads them for a write says EFAULT.
        let map = unsafe { MmapOptions::new().offset(offset).len(length).map(&*file)? };
        let window = Window {
            map,
            mappings: Arc::clone(self),
        };
        self.entries().push(Entry {
            start: window.start(),
            length,
            part: Part {
                blob: Arc::clone(blob),
                offset,
            },
        });
        Ok(Some(Bytes::from_owner(window)))
    }

    /// Where these bytes lie in a file, when they are a mapping's. Does not read them.
    pub(super) fn find(&self, bytes: &[u8]) -> Option<Part> {
        let address = bytes.as_ptr().addr();
        let entries = self.entries();
        let (entry, skipped) = entries.iter().find_map(|entry| {
            let skipped = address.checked_sub(entry.start)?;
            (skipped.checked_add(bytes.len())? <= entry.length).then_some((entry, skipped))
        })?;
        Some(Part {
            blob: Arc::clone(&entry.part.blob),
            offset: entry.part.offset + skipped as u64,
        })
    }

    /// Whether nothing is mapped.
    pub(super) fn is_empty(&self) -> bool {
        self.entries().is_empty()
    }
}

/// A mapping, as the owner of a frame's bytes.
#[derive(Debug)]
struct Window {
    map: Mmap,
    mappings: Arc<Mappings>,
}

impl Window {
    fn start(&self) -> usize {
        self.map.as_ptr().addr()
    }
}

impl AsRef<[u8]> for Window {
    fn as_ref(&self) -> &[u8] {
        &self.map
    }
}

impl Drop for Window {
    /// Forgets the address before the mapping goes, because the system may give it to another at once.
    fn drop(&mut self) {
        let start = self.start();
        self.mappings.entries().retain(|entry| entry.start != start);
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Write as _};

    use async_trait::async_trait;
    use gantry_storage::StorageError;

    use super::*;

    #[derive(Debug)]
    struct OnDisk(Arc<File>);

    #[async_trait]
    impl Blob for OnDisk {
        fn size(&self) -> u64 {
            10_000
        }

        async fn read_at(&self, _offset: u64, _length: usize) -> Result<Bytes, StorageError> {
            Ok(Bytes::new())
        }

        fn file(&self) -> Option<Arc<File>> {
            Some(Arc::clone(&self.0))
        }
    }

    fn blob() -> Arc<dyn Blob> {
        let mut file = tempfile::tempfile().unwrap();
        let content: Vec<u8> = (0..10_000_u32).map(|at| (at % 251) as u8).collect();
        file.write_all(&content).unwrap();
        Arc::new(OnDisk(Arc::new(file)))
    }

    #[test]
    fn a_frame_and_its_parts_are_found_where_they_lie_in_the_file() {
        let mappings = Arc::new(Mappings::default());
        let frame = mappings.map(&blob(), 5000, 3000).unwrap().unwrap();
        assert_eq!(frame[0], (5000 % 251) as u8);
        assert_eq!(mappings.find(&frame).unwrap().offset, 5000);
        assert_eq!(mappings.find(&frame.slice(7..)).unwrap().offset, 5007);
        assert!(mappings.find(b"something else").is_none());
    }

    #[test]
    fn an_address_is_forgotten_with_its_last_frame() {
        let mappings = Arc::new(Mappings::default());
        let frame = mappings.map(&blob(), 0, 10_000).unwrap().unwrap();
        let part = frame.slice(5000..);
        drop(frame);
        assert!(mappings.find(&part).is_some());
        drop(part);
        assert!(mappings.is_empty());
    }
}
