//! The manual and the program agree.

const PAGE: &str = include_str!("../../docs/warren.8");

fn options(command: &clap::Command) -> Vec<String> {
    command
        .get_arguments()
        .filter(|argument| !matches!(argument.get_id().as_str(), "help" | "version"))
        .flat_map(|argument| {
            let long = argument
                .get_long()
                .map(|long| format!("\\-\\-{}", long.replace('-', "\\-")));
            let short = argument.get_short().map(|short| format!("\\-{short}"));
            long.into_iter().chain(short)
        })
        .collect()
}

#[test]
fn every_command_and_option_is_in_the_manual() {
    for command in warren_fs::cli::command().get_subcommands() {
        let heading = format!(".SS warren {}\n", command.get_name());
        let start = PAGE
            .find(&heading)
            .unwrap_or_else(|| panic!("no section {heading}"));
        let section = &PAGE[start + heading.len()..];
        let section = &section[..section.find("\n.S").unwrap_or(section.len())];
        for option in options(command) {
            assert!(
                section.contains(&option),
                "{}: {option}",
                command.get_name()
            );
        }
        for below in command.get_subcommands() {
            let called = format!("warren {} {}", command.get_name(), below.get_name());
            assert!(section.contains(&called), "{called}");
            for option in options(below) {
                assert!(section.contains(&option), "{called}: {option}");
            }
        }
    }
}

#[test]
fn the_manual_has_no_section_of_a_command_that_is_not() {
    let command = warren_fs::cli::command();
    let names: Vec<&str> = command
        .get_subcommands()
        .map(clap::Command::get_name)
        .collect();
    for line in PAGE.lines() {
        if let Some(name) = line.strip_prefix(".SS warren ") {
            assert!(names.contains(&name), "{name}");
        }
    }
}
