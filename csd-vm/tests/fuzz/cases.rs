//! Cases: made from seed and number alone.

use csd_vm::program::fuzz::{Fuzzer, Parts};

use crate::originals;

/// Slots of generated programs, about.
const SLOTS_MAX: usize = 320;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Generated instructions.
    Stream,
    /// A real kernel, mutated.
    Object,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Stream => "streams",
            Kind::Object => "objects",
        }
    }

    pub(crate) fn named(name: &str) -> Result<Kind, String> {
        let kinds = [Kind::Stream, Kind::Object];
        let found = kinds.into_iter().find(|kind| kind.name() == name);
        found.ok_or(format!("there are no {name}"))
    }
}

/// What an object was made from, to undo parts of that.
pub(crate) enum Source {
    Parts(Parts),
    /// The kernel that was mutated.
    Original(Vec<u8>),
}

pub(crate) struct Case {
    pub(crate) kind: Kind,
    pub(crate) number: u64,
    pub(crate) source: Source,
    pub(crate) object: Vec<u8>,
    /// What its request is made from, and for which kernel.
    pub(crate) request: u64,
    pub(crate) like: &'static str,
}

impl Case {
    pub(crate) fn new(kind: Kind, seed: u64, number: u64) -> Case {
        let mut random = Fuzzer::new(seed.rotate_left(32) ^ number.wrapping_mul(0x9e37_79b9));
        let mut like = "";
        let (source, object) = match kind {
            Kind::Stream => {
                let parts = stream(&mut random);
                let object = parts.object();
                (Source::Parts(parts), object)
            }
            Kind::Object => {
                let originals = originals::all();
                let original = &originals[random.below(originals.len())];
                like = &original.name;
                let object = match random.below(3) {
                    0 => random.mutate(&original.object),
                    _ => random.mutate_kernel(&original.object),
                };
                (Source::Original(original.object.clone()), object)
            }
        };
        let request = random.number();
        Case {
            kind,
            number,
            source,
            object,
            request,
            like,
        }
    }
}

/// Mostly programs that get far; some whose registers hold anything, some noise.
fn stream(random: &mut Fuzzer) -> Parts {
    let slots = 4 + random.below(SLOTS_MAX);
    match random.below(32) {
        0 => Parts::of_code(&random.noise(slots / 8)),
        1 | 2 => Parts::of_code(&random.stream(slots)),
        _ => random.program(slots),
    }
}
