//! Any text in the place of one of `/proc`, of a pid file or of the downward API is understood or refused. A process
//! chooses its own comm and arguments.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Some(name) = trimtab::reload::process::parse_all(data) {
        assert!(name.len() <= 64 * 10 && !name.contains(char::is_control), "{name:?}");
    }
    let _ = trimtab::render::parse_podinfo(data);
});
