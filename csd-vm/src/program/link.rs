//! Linking: from the functions reachable from the entry and the data they refer to, to slots that
//! only lack the address of the data.
//!
//! Reachability goes by function for code and by section for data. Calls become relative to their
//! slot in the program; references to data become offsets from the start of the program's data, to
//! which the address is added when the program is placed. Calls and data references are the only
//! ways to refer to anything: the address of a function cannot be taken.

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::elf::{Home, Object, Relocation, Role, Section, Symbol};
use super::error::{LinkProblem, LoadError, Place, shown};
use super::helpers::helper_number;
use super::insn::{CALL, EXIT_SLOT, Insn, LDDW, is_goto};
use super::layout::{Block, DataLayout};
use super::{AddressFixup, Data, DataPointer, Function, LinkLimits, check_limit};

/// `R_BPF_64_64`: the address in a 64-bit constant load.
const ADDRESS_IN_CODE: u32 = 1;
/// `R_BPF_64_ABS64`: an address in data.
const ADDRESS_IN_DATA: u32 = 2;
/// `R_BPF_64_ABS32`: the lower half of an address in data.
const LOW_ADDRESS_IN_DATA: u32 = 3;
/// `R_BPF_64_NODYLD32`: the same; clang uses it when the object itself defines the symbol.
const LOW_OWN_ADDRESS_IN_DATA: u32 = 4;
/// `R_BPF_64_32`: the target of a call.
const CALL_TARGET: u32 = 10;

const SLOT: u64 = 8;

/// A linked program, not validated.
pub(super) struct Linked {
    pub(super) slots: Vec<u64>,
    pub(super) functions: Vec<Function>,
    pub(super) fixups: Vec<AddressFixup>,
    pub(super) data: Data,
    pub(super) pointers: Vec<DataPointer>,
}

/// A function in the object: slots `[first, first + slots)` of a code section.
struct Extent {
    section: usize,
    first: u64,
    slots: u64,
    symbol: usize,
}

/// A reference to `offset` bytes past the start of `block`.
#[derive(Clone, Copy)]
struct Target {
    block: Block,
    offset: i64,
}

/// Links `object`.
pub(super) fn link(object: &Object<'_>, limits: &LinkLimits) -> Result<Linked, LoadError> {
    let extents = functions(object, limits)?;
    let entry = entry(object, &extents, limits)?;
    let mut code = CodeLinker::new(object, extents);
    code.reach(entry);
    while let Some(function) = code.pending.pop_front() {
        code.add(function, limits)?;
    }
    code.patch_calls()?;
    let pointers = follow_data(object, &mut code.layout)?;
    let placed = code.layout.place(object, limits)?;
    let resolve = |target: Target| -> i64 {
        let start = placed.offsets.get(&target.block).copied().unwrap_or(0);
        i64::try_from(start)
            .unwrap_or(i64::MAX)
            .saturating_add(target.offset)
    };
    let fixups = code
        .addresses
        .iter()
        .map(|&(slot, target)| AddressFixup {
            slot,
            offset: resolve(target),
        })
        .collect();
    let pointers = pointers
        .iter()
        .map(|pointer| DataPointer {
            at: resolve(pointer.at).unsigned_abs(),
            bytes: pointer.bytes,
            offset: resolve(pointer.target),
        })
        .collect();
    Ok(Linked {
        slots: code.slots,
        functions: code.functions,
        fixups,
        data: placed.data,
        pointers,
    })
}

/// The functions of every code section, which must not overlap.
fn functions(object: &Object<'_>, limits: &LinkLimits) -> Result<Vec<Extent>, LoadError> {
    let mut starts: BTreeMap<(usize, u64), usize> = BTreeMap::new();
    for (index, symbol) in object.symbols.iter().enumerate() {
        let Home::Section(section) = symbol.home else {
            continue;
        };
        if symbol.function && object.sections[section].role == Role::Code {
            // Of several names for one place the first global one is shown.
            let name = starts.entry((section, symbol.value)).or_insert(index);
            if symbol.global && !object.symbols[*name].global {
                *name = index;
            }
        }
    }
    check_limit("functions", starts.len() as u64, limits.functions)?;
    let mut extents = Vec::with_capacity(starts.len());
    let mut following = starts.iter().skip(1);
    for (&(section, start), &symbol) in &starts {
        let next = following
            .next()
            .filter(|((other, _), _)| *other == section)
            .map(|((_, start), _)| *start);
        let size = function_size(&object.sections[section], &object.symbols[symbol], next)?;
        extents.push(Extent {
            section,
            first: start / SLOT,
            slots: size / SLOT,
            symbol,
        });
    }
    Ok(extents)
}

/// Bytes of the function `symbol` of `section`, behind which the next one starts at `next`.
fn function_size(
    section: &Section<'_>,
    symbol: &Symbol<'_>,
    next: Option<u64>,
) -> Result<u64, LoadError> {
    let wrong = |reason: &str| {
        let (section, function) = (shown(&section.name), shown(&symbol.name));
        Err(LoadError::malformed(format_args!(
            "section {section}, function {function}: {reason}"
        )))
    };
    let room_end = next.unwrap_or(section.bytes.len() as u64);
    let Some(room) = room_end.checked_sub(symbol.value) else {
        return wrong("starts outside its section");
    };
    // Hand-written assembly may leave the size out.
    let size = if symbol.size == 0 { room } else { symbol.size };
    if size > room {
        return wrong("overlaps another function or the end of its section");
    }
    if size == 0 || !size.is_multiple_of(SLOT) || !symbol.value.is_multiple_of(SLOT) {
        return wrong("is not made of whole instructions");
    }
    Ok(size)
}

/// Which function to start with.
fn entry(object: &Object<'_>, extents: &[Extent], limits: &LinkLimits) -> Result<usize, LoadError> {
    let named = |wanted: &str| {
        let mut found = None;
        for symbol in &object.symbols {
            let Home::Section(section) = symbol.home else {
                continue;
            };
            if !symbol.function || symbol.name != wanted {
                continue;
            }
            let start = (section, symbol.value / SLOT);
            if let Ok(function) = extents.binary_search_by_key(&start, |e| (e.section, e.first)) {
                found = Some(function);
                if symbol.global {
                    break;
                }
            }
        }
        found
    };
    let failed = |reason: String| Err(LoadError::Entry { reason });
    if let Some(wanted) = &limits.entry {
        return match named(wanted) {
            Some(function) => Ok(function),
            None => failed(format!("there is no function {}", shown(wanted))),
        };
    }
    if let Some(main) = named("main") {
        return Ok(main);
    }
    let mut global = extents
        .iter()
        .enumerate()
        .filter(|(_, extent)| object.symbols[extent.symbol].global);
    match (global.next(), global.next()) {
        (Some((only, _)), None) => Ok(only),
        (None, _) => failed("there is no global function".to_owned()),
        (Some((_, a)), Some((_, b))) => failed(format!(
            "no function is called main, and there is more than one global function ({}, {})",
            shown(&object.symbols[a.symbol].name),
            shown(&object.symbols[b.symbol].name)
        )),
    }
}

/// Collects the reachable functions.
struct CodeLinker<'o, 'a> {
    object: &'o Object<'a>,
    extents: Vec<Extent>,
    by_start: HashMap<(usize, u64), usize>,
    pending: VecDeque<usize>,
    /// By number of the extent: the program's function, which is the order in which it was reached.
    reached: HashMap<usize, usize>,
    slots: Vec<u64>,
    functions: Vec<Function>,
    /// Slot of a call, number of the function called.
    calls: Vec<(usize, usize)>,
    /// Slot of a constant load, what it refers to.
    addresses: Vec<(usize, Target)>,
    layout: DataLayout,
}

impl<'o, 'a> CodeLinker<'o, 'a> {
    fn new(object: &'o Object<'a>, extents: Vec<Extent>) -> Self {
        let by_start = extents
            .iter()
            .enumerate()
            .map(|(index, extent)| ((extent.section, extent.first), index))
            .collect();
        CodeLinker {
            object,
            extents,
            by_start,
            pending: VecDeque::new(),
            reached: HashMap::new(),
            slots: Vec::new(),
            functions: Vec::new(),
            calls: Vec::new(),
            addresses: Vec::new(),
            layout: DataLayout::default(),
        }
    }

    /// The program's number of a function; it is linked when its turn comes.
    fn reach(&mut self, extent: usize) -> usize {
        let next = self.reached.len();
        let number = *self.reached.entry(extent).or_insert(next);
        if number == next {
            self.pending.push_back(extent);
        }
        number
    }

    /// Appends a function and resolves what it refers to.
    fn add(&mut self, extent: usize, limits: &LinkLimits) -> Result<(), LoadError> {
        let object = self.object;
        let Extent {
            section,
            first,
            slots,
            symbol,
        } = self.extents[extent];
        let base = self.slots.len();
        check_limit(
            "instructions",
            (base as u64).saturating_add(slots),
            limits.instructions,
        )?;
        let bytes = code_bytes(&object.sections[section], first, slots);
        let (bytes, _) = bytes.as_chunks::<8>();
        self.slots
            .extend(bytes.iter().map(|slot| u64::from_le_bytes(*slot)));
        let mut function = Function {
            name: shown(&object.symbols[symbol].name),
            section: shown(&object.sections[section].name),
            first: base,
            slots: self.slots.len() - base,
            first_in_section: usize::try_from(first).unwrap_or(usize::MAX),
            stack_bytes: 0,
        };
        self.resolve(section, &function)
            .map_err(|(instruction, problem)| LoadError::Link {
                place: Place {
                    section: function.section.clone(),
                    function: function.name.clone(),
                    instruction,
                },
                problem,
            })?;
        if self.slots.last().is_some_and(|slot| is_goto(*slot)) {
            // uBPF looks for the end of a function one slot too early where that is a jump, and
            // refuses most of those; what is never reached makes it look at the jump.
            self.slots.push(EXIT_SLOT);
            function.slots += 1;
        }
        self.functions.push(function);
        Ok(())
    }

    /// Resolves what the function refers to; an error names its slot in `section`.
    fn resolve(&mut self, section: usize, function: &Function) -> Result<(), (usize, LinkProblem)> {
        let object = self.object;
        let start = function.first_in_section;
        let list = &object.sections[section].relocations;
        let end = start + function.slots;
        let from = list.partition_point(|r| r.offset < start as u64 * SLOT);
        let to = list.partition_point(|r| r.offset < end as u64 * SLOT);
        let mut relocations = list[from..to].iter().peekable();
        let mut index = function.first;
        while let Some(slot) = self.slots.get(index) {
            let insn = Insn::decode(*slot);
            let in_section = start + (index - function.first);
            let offset = in_section as u64 * SLOT;
            let width = if insn.opcode == LDDW { 2 } else { 1 };
            let relocation = relocations.next_if(|r| r.offset == offset);
            let resolved = match (insn.opcode, relocation) {
                (CALL, _) => self.resolve_call(index, insn, section, in_section, relocation),
                (LDDW, Some(relocation)) => self.resolve_address(index, insn, relocation),
                (_, None) => Ok(()),
                (_, Some(_)) => Err(LinkProblem::Misplaced),
            };
            resolved.map_err(|problem| (in_section, problem))?;
            match relocations.peek() {
                Some(next) if next.offset == offset => {
                    return Err((in_section, LinkProblem::Repeated));
                }
                Some(next) if next.offset < offset + width * SLOT => {
                    return Err((in_section, LinkProblem::Misplaced));
                }
                _ => {}
            }
            index += width as usize;
        }
        Ok(())
    }

    fn resolve_call(
        &mut self,
        index: usize,
        insn: Insn,
        section: usize,
        in_section: usize,
        relocation: Option<&Relocation>,
    ) -> Result<(), LinkProblem> {
        let relative = i64::from(insn.imm) + 1;
        let (section, slot, name) = match relocation {
            // By number, or something that the validator refuses.
            None if insn.src != 1 => return Ok(()),
            None => {
                let slot = i64::try_from(in_section)
                    .unwrap_or(i64::MAX)
                    .saturating_add(relative);
                (section, slot, "")
            }
            Some(relocation) if relocation.kind != CALL_TARGET => {
                return Err(LinkProblem::RelocationType(relocation.kind));
            }
            Some(relocation) => {
                let symbol = &self.object.symbols[relocation.symbol];
                match symbol.home {
                    Home::Undefined => return self.call_helper(index, &symbol.name),
                    Home::Section(section) if symbol.value.is_multiple_of(SLOT) => {
                        let slot = i64::try_from(symbol.value / SLOT).unwrap_or(i64::MAX);
                        (section, slot.saturating_add(relative), &*symbol.name)
                    }
                    _ => return Err(LinkProblem::NotAFunction(shown(&symbol.name))),
                }
            }
        };
        let function = u64::try_from(slot)
            .ok()
            .and_then(|slot| self.by_start.get(&(section, slot)).copied());
        let Some(function) = function else {
            let section = shown(&self.object.sections[section].name);
            let name = if name.is_empty() { &section } else { name };
            let what = format!("{} (slot {slot} of section {section})", shown(name));
            return Err(LinkProblem::NotAFunction(what));
        };
        let number = self.reach(function);
        self.calls.push((index, number));
        Ok(())
    }

    fn call_helper(&mut self, index: usize, name: &str) -> Result<(), LinkProblem> {
        let number = helper_number(name).and_then(|number| i32::try_from(number).ok());
        let Some(number) = number else {
            return Err(LinkProblem::UnknownFunction(shown(name)));
        };
        let insn = Insn::decode(self.slots[index]);
        self.slots[index] = Insn {
            src: 0,
            imm: number,
            ..insn
        }
        .encode();
        Ok(())
    }

    fn resolve_address(
        &mut self,
        index: usize,
        insn: Insn,
        relocation: &Relocation,
    ) -> Result<(), LinkProblem> {
        if relocation.kind != ADDRESS_IN_CODE {
            return Err(LinkProblem::RelocationType(relocation.kind));
        }
        let target = data_target(self.object, relocation, insn.imm.into())?;
        self.layout.want(target.block);
        self.addresses.push((index, target));
        Ok(())
    }

    /// Writes the distances of calls, now that every function has its place.
    fn patch_calls(&mut self) -> Result<(), LoadError> {
        for &(index, function) in &self.calls {
            let to = self.functions[function].first as i64;
            let distance = to - (index as i64 + 1);
            let imm = i32::try_from(distance)
                .map_err(|_| LoadError::malformed("a call is farther than a call can reach"))?;
            let insn = Insn::decode(self.slots[index]);
            self.slots[index] = Insn {
                src: 1,
                imm,
                ..insn
            }
            .encode();
        }
        Ok(())
    }
}

/// The bytes of `slots` slots, which are in the section as [`function_size`] made sure.
fn code_bytes<'a>(section: &Section<'a>, first: u64, slots: u64) -> &'a [u8] {
    let range = usize::try_from(first * SLOT)
        .ok()
        .zip(usize::try_from((first + slots) * SLOT).ok());
    range
        .and_then(|(start, end)| section.bytes.get(start..end))
        .unwrap_or_default()
}

/// What a reference to a variable refers to.
fn data_target(
    object: &Object<'_>,
    relocation: &Relocation,
    addend: i64,
) -> Result<Target, LinkProblem> {
    let symbol = &object.symbols[relocation.symbol];
    let section = match symbol.home {
        Home::Undefined if helper_number(&symbol.name).is_some() => {
            return Err(LinkProblem::FunctionAddress(shown(&symbol.name)));
        }
        Home::Undefined => return Err(LinkProblem::UnknownVariable(shown(&symbol.name))),
        Home::Absolute => return Err(LinkProblem::NoMemory(shown(&symbol.name))),
        Home::Common => {
            return Ok(Target {
                block: Block::Common(relocation.symbol),
                offset: addend,
            });
        }
        Home::Section(section) => section,
    };
    let name = || {
        let section = &object.sections[section].name;
        let own = &symbol.name;
        shown(if own.is_empty() { section } else { own })
    };
    match object.sections[section].role {
        Role::Code => return Err(LinkProblem::FunctionAddress(name())),
        Role::Ignored => return Err(LinkProblem::NoMemory(name())),
        Role::ReadOnly | Role::Initialised | Role::Zeroed => {}
    }
    if symbol.value > object.sections[section].size {
        return Err(LinkProblem::Outside);
    }
    let offset = i64::try_from(symbol.value)
        .ok()
        .and_then(|value| value.checked_add(addend))
        .ok_or(LinkProblem::Outside)?;
    Ok(Target {
        block: Block::Section(section),
        offset,
    })
}

/// A pointer in a data section.
struct Pointer {
    at: Target,
    bytes: u8,
    target: Target,
}

/// Follows the pointers in the data wanted so far, which may want more data.
fn follow_data(object: &Object<'_>, layout: &mut DataLayout) -> Result<Vec<Pointer>, LoadError> {
    let mut pointers = Vec::new();
    while let Some(index) = layout.next_section() {
        let section = &object.sections[index];
        let mut previous_end = 0;
        for relocation in &section.relocations {
            let pointer = data_pointer(object, index, relocation, previous_end);
            let pointer = pointer.map_err(|problem| LoadError::Data {
                section: shown(&section.name),
                offset: relocation.offset,
                problem,
            })?;
            previous_end = relocation.offset + u64::from(pointer.bytes);
            layout.want(pointer.target.block);
            pointers.push(pointer);
        }
    }
    Ok(pointers)
}

/// The pointer that `relocation` describes, which has to start at `free_from` or behind.
fn data_pointer(
    object: &Object<'_>,
    section: usize,
    relocation: &Relocation,
    free_from: u64,
) -> Result<Pointer, LinkProblem> {
    let bytes = match relocation.kind {
        ADDRESS_IN_DATA => 8u8,
        LOW_ADDRESS_IN_DATA | LOW_OWN_ADDRESS_IN_DATA => 4,
        kind => return Err(LinkProblem::RelocationType(kind)),
    };
    if relocation.offset < free_from {
        return Err(LinkProblem::Repeated);
    }
    let content = usize::try_from(relocation.offset)
        .ok()
        .and_then(|start| {
            let end = start.checked_add(bytes.into())?;
            object.sections[section].bytes.get(start..end)
        })
        .ok_or(LinkProblem::Outside)?;
    let mut addend = [0; 8];
    addend[..content.len()].copy_from_slice(content);
    let addend = i64::from_le_bytes(addend);
    let at = Target {
        block: Block::Section(section),
        offset: i64::try_from(relocation.offset).map_err(|_| LinkProblem::Outside)?,
    };
    Ok(Pointer {
        at,
        bytes,
        target: data_target(object, relocation, addend)?,
    })
}
