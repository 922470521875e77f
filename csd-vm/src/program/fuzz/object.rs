//! Object files around instructions that no compiler made.

use crate::program::insn::{CALL, Insn, LDDW};

/// Which data of an object a constant load refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataSection {
    /// `.rodata`.
    ReadOnly,
    /// `.data`.
    Initialised,
    /// `.bss`.
    Zeroed,
}

/// What is in an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// Its code; execution starts at slot 0. Every target of a call gets a symbol.
    pub slots: Vec<u64>,
    /// Its constants.
    pub read_only: Vec<u8>,
    /// Its variables with initial values.
    pub initialised: Vec<u8>,
    /// Bytes of variables that start as zeros.
    pub zeroed: u64,
    /// Slots of constant loads that refer to data, from its start on plus their immediate.
    pub references: Vec<(usize, DataSection)>,
}

const FIRST_DATA_SECTION: u16 = 2;
const SYMBOL_BYTES: u64 = 24;
const HEADER_BYTES: usize = 64;

impl Parts {
    /// Code alone.
    #[must_use]
    pub fn of_code(slots: &[u64]) -> Parts {
        Parts {
            slots: slots.to_vec(),
            ..Parts::default()
        }
    }

    /// The object file.
    #[must_use]
    pub fn object(&self) -> Vec<u8> {
        let text: Vec<u8> = self.slots.iter().flat_map(|s| s.to_le_bytes()).collect();
        let (symbols, globals_from) = self.symbols();
        let names = b"\0main\0";
        let mut out = Writer::default();
        let code = flags(&["alloc", "execute"]);
        out.section(".text", 1, code, &text, text.len() as u64, [0, 0, 0]);
        for (name, kind, flag, bytes, size) in [
            (".rodata", 1, flags(&["alloc"]), &self.read_only, None),
            (
                ".data",
                1,
                flags(&["alloc", "write"]),
                &self.initialised,
                None,
            ),
            (
                ".bss",
                8,
                flags(&["alloc", "write"]),
                &vec![],
                Some(self.zeroed),
            ),
        ] {
            let size = size.unwrap_or(bytes.len() as u64);
            out.section(name, kind, flag, bytes, size, [0, 0, 0]);
        }
        let [symtab, strtab] = [5, 6];
        let size = symbols.len() as u64;
        let links = [strtab, globals_from, SYMBOL_BYTES as u32];
        out.section(".symtab", 2, 0, &symbols, size, links);
        out.section(".strtab", 3, 0, names, names.len() as u64, [0, 0, 0]);
        let references = self.relocations();
        let size = references.len() as u64;
        out.section(".rel.text", 9, 0, &references, size, [symtab, 1, 16]);
        out.finish()
    }

    /// The symbol table, and the first global symbol in it: null, the three sections of data, the
    /// functions, main.
    fn symbols(&self) -> (Vec<u8>, u32) {
        let mut out = vec![0; SYMBOL_BYTES as usize];
        let mut add = |name: u32, info: u8, section: u16, value: u64| {
            out.extend(name.to_le_bytes());
            out.extend([info, 0]);
            out.extend(section.to_le_bytes());
            out.extend(value.to_le_bytes());
            out.extend(0u64.to_le_bytes());
        };
        for section in 0..3 {
            add(0, 3, FIRST_DATA_SECTION + section, 0);
        }
        let functions = self.functions();
        for start in &functions {
            add(0, 2, 1, *start as u64 * 8);
        }
        add(1, 0x12, 1, 0);
        (out, 4 + functions.len() as u32)
    }

    /// Where calls lead, besides the start.
    fn functions(&self) -> Vec<usize> {
        let mut starts = Vec::new();
        for (at, slot) in self.slots.iter().enumerate() {
            let insn = Insn::decode(*slot);
            let is_second = at > 0 && Insn::decode(self.slots[at - 1]).opcode == LDDW;
            if insn.opcode == CALL && insn.src == 1 && !is_second {
                let target = at as i64 + 1 + i64::from(insn.imm);
                let target = usize::try_from(target).ok();
                starts.extend(target.filter(|to| *to > 0 && *to < self.slots.len()));
            }
        }
        starts.sort_unstable();
        starts.dedup();
        starts
    }

    fn relocations(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (slot, section) in &self.references {
            out.extend((*slot as u64 * 8).to_le_bytes());
            let symbol = 1 + *section as u64;
            out.extend((symbol << 32 | 1).to_le_bytes());
        }
        out
    }
}

fn flags(names: &[&str]) -> u64 {
    let bit = |name: &&str| match *name {
        "write" => 1,
        "alloc" => 2,
        _ => 4,
    };
    names.iter().map(bit).sum()
}

/// An ELF file in the making: contents, then the table of sections.
struct Writer {
    bytes: Vec<u8>,
    names: Vec<u8>,
    headers: Vec<u8>,
}

impl Default for Writer {
    fn default() -> Writer {
        Writer {
            bytes: vec![0; HEADER_BYTES],
            names: vec![0],
            headers: vec![0; HEADER_BYTES],
        }
    }
}

impl Writer {
    fn section(
        &mut self,
        name: &str,
        kind: u32,
        flags: u64,
        bytes: &[u8],
        size: u64,
        [link, info, entry]: [u32; 3],
    ) {
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
        let (at, name_at) = (self.bytes.len() as u64, self.names.len() as u32);
        self.names.extend(name.bytes().chain([0]));
        self.bytes.extend(bytes);
        let header = &mut self.headers;
        header.extend(name_at.to_le_bytes());
        header.extend(kind.to_le_bytes());
        for field in [flags, 0, at, size] {
            header.extend(field.to_le_bytes());
        }
        header.extend(link.to_le_bytes());
        header.extend(info.to_le_bytes());
        header.extend(8u64.to_le_bytes());
        header.extend(u64::from(entry).to_le_bytes());
    }

    fn finish(mut self) -> Vec<u8> {
        // The names of sections include their own section's.
        let size = self.names.len() as u64 + 10;
        let names = [self.names.clone(), b".shstrtab\0".to_vec()].concat();
        self.section(".shstrtab", 3, 0, &names, size, [0, 0, 0]);
        let sections = (self.headers.len() / HEADER_BYTES) as u16;
        let table = self.bytes.len().next_multiple_of(8);
        self.bytes.resize(table, 0);
        self.bytes.extend(&self.headers);
        let mut header = b"\x7fELF\x02\x01\x01".to_vec();
        header.resize(16, 0);
        // Relocatable, for BPF.
        header.extend([1, 0, 247, 0, 1, 0, 0, 0]);
        header.extend([0u64, 0, table as u64].iter().flat_map(|n| n.to_le_bytes()));
        header.extend([0; 4]);
        for field in [64, 0, 0, 64, sections, sections - 1] {
            header.extend(u16::to_le_bytes(field));
        }
        self.bytes[..HEADER_BYTES].copy_from_slice(&header);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::{LinkLimits, Program};

    #[test]
    fn what_is_put_in_an_object_is_linked_from_it() {
        let call = Insn {
            opcode: CALL,
            src: 1,
            imm: 3,
            ..Insn::default()
        };
        let constant = Insn {
            opcode: LDDW,
            dst: 1,
            imm: -8,
            ..Insn::default()
        };
        let parts = Parts {
            slots: vec![call.encode(), constant.encode(), 0, 0x95, 0x95],
            read_only: vec![1; 10],
            initialised: vec![2; 20],
            zeroed: 30,
            references: vec![(1, DataSection::Zeroed)],
        };
        let program = Program::link(&parts.object(), &LinkLimits::default()).expect("links");
        assert_eq!(program.functions().len(), 2);
        assert_eq!(program.entry_name(), "main");
        let data = program.data();
        // Nothing refers to the others.
        assert_eq!(
            (data.read_only.len(), data.initialised.len(), data.zeroed),
            (0, 0, 30)
        );
        assert_eq!(program.data_references().collect::<Vec<_>>(), [(1, -8)]);
    }
}
