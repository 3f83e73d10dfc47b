//! Any command line is parsed and cross-checked or refused, and no credential in it is shown.
//!
//! The input is its words, with a NUL between two. A word of `\x01` and a byte is the flag of that number, so that
//! flags which are new are found without a dictionary.
#![no_main]

use std::cell::RefCell;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;

use clap::FromArgMatches as _;
use libfuzzer_sys::fuzz_target;
use trimtab::cli::flags::RunArgs;
use trimtab::cli::{self, Cli, Command};

const CANARY: &str = "hunter2-canary";

thread_local! {
    // Made once, as that takes longer than to parse.
    static PARSER: RefCell<clap::Command> = RefCell::new(cli::command());
    static FLAGS: Vec<String> = {
        let command = cli::command();
        let names = command.get_arguments().filter_map(|argument| argument.get_long());
        names.map(|name| format!("--{name}")).collect()
    };
}

fn word(bytes: &[u8]) -> OsString {
    match bytes {
        [1, number, rest @ ..] => FLAGS.with(|flags| {
            let mut word = OsString::from(&flags[usize::from(*number) % flags.len()]);
            word.push(OsStr::from_bytes(rest));
            word
        }),
        _ => OsStr::from_bytes(bytes).to_owned(),
    }
}

/// Puts the canary wherever a credential may stand on a command line.
fn hide(args: &mut RunArgs) {
    for url in args.reload.reload_urls.iter_mut().chain(&mut args.confirm.confirm_url) {
        // In the path of a unix socket, and behind a fragment, there is no query.
        if !url.contains('#') && !url.starts_with("unix:") {
            url.push_str("?token=");
            url.push_str(CANARY);
        }
    }
    for header in args.reload.reload_headers.iter_mut().filter(|header| header.contains(':')) {
        header.push_str(CANARY);
    }
    if let Some(body) = &mut args.reload.reload_body {
        body.push_str(CANARY);
    }
}

fuzz_target!(|data: &[u8]| {
    let words = std::iter::once(OsString::from("trimtab")).chain(data.split(|&byte| byte == 0).map(word));
    let Ok(matches) = PARSER.with_borrow_mut(|parser| parser.try_get_matches_from_mut(words)) else { return };
    let Ok(cli) = Cli::from_arg_matches(&matches) else { return };
    let mut args = match cli.command {
        None => cli.run,
        Some(Command::Render(dry) | Command::Check(dry)) => dry.run,
        Some(_) => return,
    };
    let known = String::from_utf8_lossy(data).contains(CANARY);
    hide(&mut args);
    let said = match args.check(&|_| None, &|_| Ok("own".into())) {
        Ok(config) => format!("{config:?}"),
        Err(error) => error.to_string(),
    };
    assert!(known || !said.contains(CANARY), "{said}");
});
