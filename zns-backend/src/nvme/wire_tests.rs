//! Identify structures and reports as recorded from QEMU's controller, and altered ones.

use super::*;
