//! What an upstream says about callers, by whom and for how long.
