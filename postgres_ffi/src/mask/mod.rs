//! What may differ between two right copies of a page, per access method.
