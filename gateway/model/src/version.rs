//! The state of a repository as a number, so that an answer about it can be known to be still right.
//!
//! Invariant: an unknown version is not equal to any, itself included, so that no answer outlives a change that nobody could see.

/// The version of a repository. There is no `==`: use [`Version::is_still`].
#[derive(Clone, Copy, Debug)]
pub enum Version {
    /// Moves with every commit to the repository; it may also move without one.
    Known(u64),
    /// Others may commit unseen.
    Unknown,
}

impl Version {
    /// Whether nothing was committed between this version and an earlier one, for certain.
    #[must_use]
    pub fn is_still(self, earlier: Self) -> bool {
        matches!((self, earlier), (Self::Known(now), Self::Known(then)) if now == then)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_version_is_never_still_what_it_was() {
        assert!(Version::Known(7).is_still(Version::Known(7)));
        for (now, earlier) in [
            (Version::Known(8), Version::Known(7)),
            (Version::Known(7), Version::Unknown),
            (Version::Unknown, Version::Known(7)),
            (Version::Unknown, Version::Unknown),
        ] {
            assert!(!now.is_still(earlier), "{now:?}, {earlier:?}");
        }
    }
}
