//! Whatever a program does, it ends, and nothing else does.
