//! Reading an object file: sections, symbols and relocations of a relocatable BPF ELF file.
//!
//! Only what linking needs is kept: sections with a place in memory, the symbol table, and the
//! relocations of those sections. Debug information, BTF and the like are never looked at. Nothing
//! here trusts an offset or a count; after this module, symbol and section numbers are in range.

use std::borrow::Cow;

use elf::endian::LittleEndian;
use elf::section::SectionHeader;
use elf::string_table::StringTable;
use elf::{ElfBytes, abi};

use super::error::{LoadError, shown};
use super::{LinkLimits, check_limit};

/// What a section is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Instructions.
    Code,
    /// Constants.
    ReadOnly,
    /// Variables with initial values.
    Initialised,
    /// Variables that start as zeros; without bytes in the file.
    Zeroed,
    /// No part of the program.
    Ignored,
}

/// A section.
pub(super) struct Section<'a> {
    pub(super) name: Cow<'a, str>,
    pub(super) role: Role,
    /// Empty for zeroed and ignored sections.
    pub(super) bytes: &'a [u8],
    /// Bytes in memory.
    pub(super) size: u64,
    /// A power of two.
    pub(super) align: u64,
    /// By ascending offset.
    pub(super) relocations: Vec<Relocation>,
}

/// Where a symbol is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Home {
    /// Elsewhere: a helper.
    Undefined,
    /// A number, not a place.
    Absolute,
    /// An uninitialised variable that the linker places; the value is its alignment.
    Common,
    /// In this section, the value is an offset.
    Section(usize),
}

/// A symbol.
pub(super) struct Symbol<'a> {
    pub(super) name: Cow<'a, str>,
    pub(super) home: Home,
    pub(super) value: u64,
    pub(super) size: u64,
    pub(super) function: bool,
    /// Visible to other objects.
    pub(super) global: bool,
}

/// A reference that the linker fills in.
#[derive(Clone, Copy)]
pub(super) struct Relocation {
    /// Byte in its section.
    pub(super) offset: u64,
    pub(super) kind: u32,
    pub(super) symbol: usize,
}

/// A relocatable object.
pub(super) struct Object<'a> {
    pub(super) sections: Vec<Section<'a>>,
    pub(super) symbols: Vec<Symbol<'a>>,
}

type File<'a> = ElfBytes<'a, LittleEndian>;

impl<'a> Object<'a> {
    /// Reads `bytes`.
    pub(super) fn parse(bytes: &'a [u8], limits: &LinkLimits) -> Result<Object<'a>, LoadError> {
        check_limit("bytes of object", bytes.len() as u64, limits.object_bytes)?;
        check_header(bytes)?;
        let file = File::minimal_parse(bytes).map_err(LoadError::malformed)?;
        let (headers, names) = section_table(&file, limits)?;
        let mut sections = headers
            .iter()
            .map(|header| section(&file, header, names))
            .collect::<Result<Vec<_>, _>>()?;
        let symbols = symbols(&file, &sections, limits)?;
        relocations(&file, &headers, &symbols, &mut sections, limits)?;
        Ok(Object { sections, symbols })
    }
}

/// Whether this is a relocatable object for BPF, little endian.
fn check_header(bytes: &[u8]) -> Result<(), LoadError> {
    let refused = |reason: &str| {
        Err(LoadError::Format {
            reason: reason.to_owned(),
        })
    };
    if bytes.len() < 64 || !bytes.starts_with(&abi::ELFMAGIC) {
        return refused("no ELF header");
    }
    if bytes[abi::EI_CLASS] != abi::ELFCLASS64 {
        return refused("not a 64-bit object");
    }
    if bytes[abi::EI_DATA] != abi::ELFDATA2LSB {
        return refused("not a little-endian object");
    }
    if u16::from_le_bytes([bytes[18], bytes[19]]) != abi::EM_BPF {
        return refused("compiled for another machine (use clang -target bpf)");
    }
    if u16::from_le_bytes([bytes[16], bytes[17]]) != abi::ET_REL {
        return refused("not a relocatable object (use clang -c)");
    }
    Ok(())
}

fn section_table<'a>(
    file: &File<'a>,
    limits: &LinkLimits,
) -> Result<(Vec<SectionHeader>, StringTable<'a>), LoadError> {
    let (headers, names) = file
        .section_headers_with_strtab()
        .map_err(LoadError::malformed)?;
    let (Some(headers), Some(names)) = (headers, names) else {
        return Err(LoadError::malformed("no section table"));
    };
    check_limit("sections", headers.len() as u64, limits.sections)?;
    Ok((headers.iter().collect(), names))
}

fn role(header: &SectionHeader) -> Role {
    let flag = |bit: u32| header.sh_flags & u64::from(bit) != 0;
    if !flag(abi::SHF_ALLOC) {
        return Role::Ignored;
    }
    match (
        header.sh_type,
        flag(abi::SHF_EXECINSTR),
        flag(abi::SHF_WRITE),
    ) {
        (abi::SHT_PROGBITS, true, false) => Role::Code,
        (abi::SHT_PROGBITS, false, false) => Role::ReadOnly,
        (abi::SHT_PROGBITS, false, true) => Role::Initialised,
        (abi::SHT_NOBITS, false, _) => Role::Zeroed,
        _ => Role::Ignored,
    }
}

fn section<'a>(
    file: &File<'a>,
    header: &SectionHeader,
    names: StringTable<'a>,
) -> Result<Section<'a>, LoadError> {
    let name = string(names, header.sh_name)?;
    let role = role(header);
    let mut bytes: &[u8] = &[];
    if !matches!(role, Role::Ignored | Role::Zeroed) {
        let (data, compression) = file.section_data(header).map_err(LoadError::malformed)?;
        if compression.is_some() {
            let name = shown(&name);
            return Err(LoadError::malformed(format_args!(
                "section {name} is compressed"
            )));
        }
        bytes = data;
    }
    let align = header.sh_addralign.max(1);
    if role != Role::Ignored && !align.is_power_of_two() {
        let name = shown(&name);
        return Err(LoadError::malformed(format_args!(
            "section {name} has alignment {align}"
        )));
    }
    Ok(Section {
        name,
        role,
        bytes,
        size: header.sh_size,
        align,
        relocations: Vec::new(),
    })
}

fn symbols<'a>(
    file: &File<'a>,
    sections: &[Section<'_>],
    limits: &LinkLimits,
) -> Result<Vec<Symbol<'a>>, LoadError> {
    let Some((table, names)) = file.symbol_table().map_err(LoadError::malformed)? else {
        return Err(LoadError::malformed("no symbol table"));
    };
    check_limit("symbols", table.len() as u64, limits.symbols)?;
    let mut symbols = Vec::with_capacity(table.len());
    for (index, symbol) in table.iter().enumerate() {
        let home = match symbol.st_shndx {
            abi::SHN_UNDEF => Home::Undefined,
            abi::SHN_ABS => Home::Absolute,
            abi::SHN_COMMON => Home::Common,
            section if usize::from(section) < sections.len() => Home::Section(section.into()),
            section => {
                return Err(LoadError::malformed(format_args!(
                    "symbol {index} is in section {section}, which does not exist"
                )));
            }
        };
        symbols.push(Symbol {
            name: string(names, symbol.st_name)?,
            home,
            value: symbol.st_value,
            size: symbol.st_size,
            function: symbol.st_symtype() == abi::STT_FUNC,
            global: symbol.st_bind() != abi::STB_LOCAL,
        });
    }
    Ok(symbols)
}

/// Gives every section of the program its relocations.
fn relocations(
    file: &File<'_>,
    headers: &[SectionHeader],
    symbols: &[Symbol<'_>],
    sections: &mut [Section<'_>],
    limits: &LinkLimits,
) -> Result<(), LoadError> {
    let mut total = 0u64;
    for header in headers {
        if !matches!(header.sh_type, abi::SHT_REL | abi::SHT_RELA) {
            continue;
        }
        let Some(section) = sections.get_mut(header.sh_info as usize) else {
            return Err(LoadError::malformed(
                "relocations of a section that does not exist",
            ));
        };
        if section.role == Role::Ignored {
            continue;
        }
        if header.sh_type == abi::SHT_RELA {
            let name = shown(&section.name);
            return Err(LoadError::malformed(format_args!(
                "the relocations of section {name} have addends, which BPF objects do not have"
            )));
        }
        for entry in file
            .section_data_as_rels(header)
            .map_err(LoadError::malformed)?
        {
            // Type 0 relocates nothing.
            if entry.r_type == 0 {
                continue;
            }
            total += 1;
            check_limit("relocations", total, limits.relocations)?;
            if entry.r_sym as usize >= symbols.len() {
                let name = shown(&section.name);
                return Err(LoadError::malformed(format_args!(
                    "a relocation of section {name} names symbol {}, which does not exist",
                    entry.r_sym
                )));
            }
            section.relocations.push(Relocation {
                offset: entry.r_offset,
                kind: entry.r_type,
                symbol: entry.r_sym as usize,
            });
        }
        section.relocations.sort_by_key(|entry| entry.offset);
    }
    Ok(())
}

fn string<'a>(table: StringTable<'a>, at: u32) -> Result<Cow<'a, str>, LoadError> {
    table
        .get_raw(at as usize)
        .map(String::from_utf8_lossy)
        .map_err(LoadError::malformed)
}
