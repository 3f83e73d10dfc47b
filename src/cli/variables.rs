//! Each flag's variable, and variables that look like one and are none.

use std::collections::BTreeSet;
use std::ffi::OsStr;

use clap::builder::BoolishValueParser;
use clap::{ArgAction, Command};

use super::{escaped, nearest};

/// What all of Trimtab's variables begin with.
const PREFIX: &str = "TRIMTAB_";

/// Beginnings of variables that are for Trimtab's own tests, benchmarks and tools.
const RESERVED: [&str; 3] = ["TEST_", "BENCH_", "CACHE"];

/// The variable of a flag: `--reload-url` is `TRIMTAB_RELOAD_URL`.
pub(super) fn name_of(long: &str) -> String {
    format!("{PREFIX}{}", long.to_uppercase().replace('-', "_"))
}

/// Gives each flag its variable, those of subcommands too.
pub(super) fn derived(command: Command) -> Command {
    let command = command.mut_args(|arg| {
        let Some(long) = arg.get_long() else { return arg };
        let variable = name_of(long);
        let arg = match arg.get_action() {
            ArgAction::SetTrue => arg.value_parser(BoolishValueParser::new()),
            ArgAction::Append => arg.value_delimiter('\n'),
            _ => arg,
        };
        // A value may hold a credential.
        arg.env(variable).hide_env_values(true)
    });
    command.mut_subcommands(derived)
}

/// A message for each variable that begins like one of Trimtab's and would do nothing. Values are not quoted: each may
/// hold a credential.
pub(super) fn unknown<'a>(
    command: &Command,
    environment: impl IntoIterator<Item = (&'a OsStr, &'a OsStr)>,
) -> Vec<String> {
    let mut known = BTreeSet::new();
    collect(command, &mut known);
    let mut messages = Vec::new();
    for (name, value) in environment {
        let name = name.to_string_lossy();
        let Some(rest) = name.strip_prefix(PREFIX) else { continue };
        let reserved = RESERVED.iter().any(|reserved| rest.starts_with(reserved));
        if reserved || known.contains(rest) || is_of_a_service(rest, value) {
            continue;
        }
        let remedy = match nearest(rest, known.iter().copied()) {
            Some(near) => format!("did you mean {PREFIX}{near}?"),
            None => format!("names that begin with {PREFIX} are Trimtab's; remove it, or give it another name"),
        };
        messages.push(format!("the variable {} is not known, and would be ignored: {remedy}", escaped(&name, '\0')));
    }
    messages
}

/// The variables of a command and its subcommands, without the prefix.
fn collect<'a>(command: &'a Command, known: &mut BTreeSet<&'a str>) {
    let variables = command.get_arguments().filter_map(|arg| arg.get_env()?.to_str()?.strip_prefix(PREFIX));
    known.extend(variables);
    for subcommand in command.get_subcommands() {
        collect(subcommand, known);
    }
}

/// Whether the kubelet sets this for a Service whose name begins with `trimtab`
/// (`pkg/kubelet/envvars/envvars.go`, `FromServices`). `rest`: the name behind the prefix.
fn is_of_a_service(rest: &str, value: &OsStr) -> bool {
    // As `trimtab` may be the Service's whole name, an underscore is put back.
    let name = format!("_{rest}");
    if name.ends_with("_SERVICE_HOST") || name.ends_with("_SERVICE_PORT") || name.contains("_SERVICE_PORT_") {
        return true;
    }
    if name.ends_with("_PORT") && is_address(value) {
        return true;
    }
    let Some((_, port)) = name.rsplit_once("_PORT_") else { return false };
    let mut parts = port.split('_');
    let number = parts.next().is_some_and(|number| number.parse::<u16>().is_ok());
    let protocol = parts.next().is_some_and(|protocol| matches!(protocol, "TCP" | "UDP" | "SCTP"));
    number
        && protocol
        && match (parts.next(), parts.next()) {
            (None, _) => is_address(value),
            (Some("PROTO" | "PORT" | "ADDR"), None) => true,
            _ => false,
        }
}

/// `tcp://10.0.0.1:80`, as links between containers had it.
fn is_address(value: &OsStr) -> bool {
    let address = value.to_str().and_then(|value| value.split_once("://"));
    address.is_some_and(|(protocol, address)| {
        matches!(protocol, "tcp" | "udp" | "sctp")
            && address.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::command;

    fn said(name: &str, value: &str) -> Vec<String> {
        unknown(&command(), [(OsStr::new(name), OsStr::new(value))])
    }

    #[test]
    fn a_variable_that_means_nothing_is_named_with_the_nearest_one() {
        for (name, near) in [
            ("TRIMTAB_RELOADURL", "TRIMTAB_RELOAD_URL"),
            ("TRIMTAB_WATCH_DIRS", "TRIMTAB_WATCH_DIR"),
            ("TRIMTAB_reload_url", "another name"),
            ("TRIMTAB_X", "another name"),
            ("TRIMTAB_", "another name"),
            ("TRIMTAB_PORT", ""),
            ("TRIMTAB_RELOAD_PORT_80_TCP", ""),
            ("TRIMTAB_WEB_PORT_80_TCP_URL", ""),
            ("TRIMTAB_WEB_PORT_HTTP_TCP_ADDR", ""),
            ("TRIMTAB_SERVICEHOST", ""),
        ] {
            let said = said(name, "c4n4ry");
            assert_eq!(said.len(), 1, "{name}");
            assert!(said[0].contains(name) && said[0].contains(near) && !said[0].contains("c4n4ry"), "{said:?}");
        }
    }

    #[test]
    fn what_kubernetes_injects_and_what_is_known_is_no_mistake() {
        for (name, value) in [
            ("TRIMTAB_SERVICE_HOST", "10.0.0.5"),
            ("TRIMTAB_SERVICE_PORT", "80"),
            ("TRIMTAB_SERVICE_PORT_METRICS", "9533"),
            ("TRIMTAB_SERVICE_PORT__8080", "8080"),
            ("TRIMTAB_PORT", "tcp://10.0.0.5:80"),
            ("TRIMTAB_PORT_80_TCP", "tcp://10.0.0.5:80"),
            ("TRIMTAB_PORT_80_TCP_PROTO", "tcp"),
            ("TRIMTAB_PORT_80_TCP_PORT", "80"),
            ("TRIMTAB_PORT_80_TCP_ADDR", "10.0.0.5"),
            ("TRIMTAB_WEB_SERVICE_HOST", "fd00::5"),
            ("TRIMTAB_WEB_PORT", "udp://[fd00::5]:53"),
            ("TRIMTAB_WEB_PORT_53_UDP", "udp://[fd00::5]:53"),
            ("TRIMTAB_WEB_PORT_9_SCTP_ADDR", "fd00::5"),
            ("TRIMTAB_TEST_X", ""),
            ("TRIMTAB_BENCH_X", ""),
            ("TRIMTAB_CACHE", ""),
            ("TRIMTAB_OUTPUT", "/x"),
            ("TRIMTAB_FORMAT", "json"),
            ("TRIMTAB", ""),
            ("NO_TRIMTAB_X", ""),
        ] {
            assert_eq!(said(name, value), Vec::<String>::new(), "{name}={value}");
        }
    }
}
