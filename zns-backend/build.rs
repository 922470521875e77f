//! With the feature `xnvme`: says what to install where libxnvme is missing, before its bindings fail
//! with less to say, and tells the crate which version it is built with.

use std::process::Command;

/// What the bindings are pinned to.
const WANTED: &str = "0.7.5";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_XNVME").is_none() {
        return;
    }
    println!("cargo::rerun-if-env-changed=PKG_CONFIG_PATH");
    match version() {
        Ok(version) => println!("cargo::rustc-env=WARREN_XNVME_VERSION={version}"),
        Err(problem) => {
            println!(
                "cargo::error=the feature xnvme needs libxnvme {WANTED} or later with its headers and \
                 xnvme.pc: {problem}"
            );
            println!(
                "cargo::error=install it from its own project, https://xnvme.io; docs/devices.md says \
                 how. PKG_CONFIG_PATH names the directory of xnvme.pc if that is no usual one"
            );
        }
    }
}

/// The version of the library that pkg-config finds.
fn version() -> Result<String, String> {
    println!("cargo::rerun-if-env-changed=PKG_CONFIG");
    let program = std::env::var_os("PKG_CONFIG").unwrap_or_else(|| "pkg-config".into());
    let ask = |arguments: &[&str]| {
        Command::new(&program)
            .args(arguments)
            .arg("xnvme")
            .output()
            .map_err(|e| format!("{} cannot be run ({e})", program.display()))
    };
    let found = ask(&["--modversion"])?;
    if !found.status.success() {
        return Err("pkg-config does not find it".into());
    }
    let version = String::from_utf8_lossy(&found.stdout).trim().to_owned();
    let recent = ask(&["--atleast-version", WANTED])?;
    if !recent.status.success() {
        return Err(format!("pkg-config finds {version}"));
    }
    Ok(version)
}
