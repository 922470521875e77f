//! Programs touch their cage only, and in there what is theirs only.
