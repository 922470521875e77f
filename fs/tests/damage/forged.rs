//! Images whose checksums are right and whose contents are hostile.
