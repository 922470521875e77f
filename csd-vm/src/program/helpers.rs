//! The helpers a program may call: numbers and names.
//!
//! The numbers are binary interface: they never change and are never used again.

/// A helper's number and the name under which a program may declare it `extern`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HelperName {
    /// Number in the call instruction.
    pub number: u32,
    /// Name of the function.
    pub name: &'static str,
}

const fn helper(number: u32, name: &'static str) -> HelperName {
    HelperName { number, name }
}

/// Every helper, by number: OpenCSD's (1 to 9), then Warren's (from 32).
pub const HELPERS: &[HelperName] = &[
    helper(1, "bpf_return_data"),
    helper(2, "bpf_read"),
    helper(3, "bpf_write"),
    helper(4, "bpf_get_sector_size"),
    helper(5, "bpf_get_zone_capacity"),
    helper(6, "bpf_get_zone_size"),
    helper(7, "bpf_get_mem_info"),
    helper(8, "bpf_get_call_info"),
    helper(9, "bpf_debug"),
    helper(32, "warren_request"),
    helper(33, "warren_map"),
    helper(34, "warren_read"),
    helper(35, "warren_emit"),
    helper(36, "warren_reserve"),
    helper(37, "warren_append"),
    helper(38, "warren_argument"),
    helper(39, "warren_log"),
    helper(40, "warren_trim"),
    helper(41, "warren_unmap"),
];

/// Number of the helper called `name`.
#[must_use]
pub fn helper_number(name: &str) -> Option<u32> {
    HELPERS
        .iter()
        .find(|helper| helper.name == name)
        .map(|helper| helper.number)
}

/// Name of helper `number`.
#[must_use]
pub fn helper_name(number: u32) -> Option<&'static str> {
    HELPERS
        .iter()
        .find(|helper| helper.number == number)
        .map(|helper| helper.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_of_helpers_are_unique_and_ascending() {
        assert!(HELPERS.is_sorted_by(|a, b| a.number < b.number));
        for helper in HELPERS {
            assert_eq!(helper_number(helper.name), Some(helper.number));
            assert_eq!(helper_name(helper.number), Some(helper.name));
        }
    }
}
