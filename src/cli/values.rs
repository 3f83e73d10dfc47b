//! The grammars of flags' values.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// `[NS/]NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectName {
    /// The namespace, if one was given.
    pub namespace: Option<String>,
    /// The name.
    pub name: String,
}

impl FromStr for ObjectName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (namespace, name) = match text.split_once('/') {
            Some((namespace, name)) => (Some(namespace), name),
            None => (None, text),
        };
        if !is_dns_name(name) || namespace.is_some_and(|namespace| !is_dns_name(namespace)) {
            return Err("expected NAME or NAMESPACE/NAME, of lower-case letters, digits, '-' and '.'".into());
        }
        Ok(Self { namespace: namespace.map(str::to_owned), name: name.to_owned() })
    }
}

/// Whether the API server could accept this as a name: an RFC 1123 subdomain
/// (`k8s.io/apimachinery/pkg/util/validation`, `IsDNS1123Subdomain`), its ends not looked at.
fn is_dns_name(text: &str) -> bool {
    let allowed = |c| matches!(c, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.');
    !text.is_empty() && text.len() <= 253 && text.bytes().all(allowed) && text != "." && text != ".."
}

/// The name of a namespace. It becomes a segment of a URL's path.
pub(super) fn namespace(text: &str) -> Result<String, String> {
    if is_dns_name(text) {
        Ok(text.to_owned())
    } else {
        Err("expected a namespace's name, of lower-case letters, digits and '-'".into())
    }
}

/// `[NAME=]PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedPath {
    /// How templates call the directory.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
}

impl FromStr for NamedPath {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, path) = match text.split_once('=') {
            // An `=` behind a slash belongs to the path.
            Some((name, path)) if !name.contains('/') => (Some(name), path),
            _ => (None, text),
        };
        if path.is_empty() {
            return Err("the path is empty".into());
        }
        let path = PathBuf::from(path);
        let last = path.file_name().and_then(|name| name.to_str());
        let Some(name) = name.or(last).filter(|name| !name.is_empty()) else {
            return Err("the path has no last segment to be called by: give a name, as NAME=PATH".into());
        };
        Ok(Self { name: name.to_owned(), path })
    }
}

/// `SRC[:DEST]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TemplateArg {
    /// A file or a directory.
    pub source: PathBuf,
    /// Where it is rendered to; for a directory, the directory that its files go below.
    pub dest: Option<String>,
}

impl FromStr for TemplateArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (source, dest) = match text.rsplit_once(':') {
            Some((source, dest)) => (source, Some(dest)),
            None => (text, None),
        };
        if source.is_empty() || dest.is_some_and(str::is_empty) {
            return Err("expected SRC or SRC:DEST, neither of them empty".into());
        }
        Ok(Self { source: source.into(), dest: dest.map(str::to_owned) })
    }
}

/// `HOST:PORT`, `:PORT` for all addresses, or `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen(pub Option<SocketAddr>);

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "off" {
            return Ok(Self(None));
        }
        let all = text.strip_prefix(':').and_then(|port| port.parse().ok());
        let local = text.strip_prefix("localhost:").and_then(|port| port.parse().ok());
        let address = match (all, local) {
            // On Linux an IPv6 socket takes IPv4 connections as well (ipv6(7), IPV6_V6ONLY).
            (Some(port), _) => SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port),
            (_, Some(port)) => SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port),
            _ => text.parse().map_err(|_| "expected IP:PORT, [IPV6]:PORT, :PORT or off")?,
        };
        Ok(Self(Some(address)))
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(address) => write!(f, "{address}"),
            None => f.write_str("off"),
        }
    }
}

/// A duration: numbers with the units `h`, `m`, `s`, `ms`, one after the other, or a bare `0`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    const YEAR: Duration = Duration::from_hours(8760);
    const EXPECTED: &str = "expected a duration such as 250ms, 5s, 1m30s or 0";
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() || text.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, behind) = rest.split_at(digits);
        let letters = behind.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, behind) = behind.split_at(letters);
        let millis: u64 = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err(EXPECTED.into()),
        };
        let number: u64 = number.parse().map_err(|_| EXPECTED)?;
        let part = number.checked_mul(millis).ok_or("the duration is too long")?;
        total = total.checked_add(Duration::from_millis(part)).ok_or("the duration is too long")?;
        rest = behind;
    }
    if total > YEAR {
        return Err("the duration is longer than a year".into());
    }
    Ok(total)
}

/// A size in bytes, as a Kubernetes quantity of whole bytes (`k8s.io/apimachinery/pkg/api/resource`).
pub(super) fn quantity(text: &str) -> Result<u64, String> {
    const EXPECTED: &str = "expected a size such as 4096, 64Ki, 1Mi or 1M";
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit {
        "" => 1,
        "k" => 1000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        _ => return Err(EXPECTED.into()),
    };
    let number: u64 = number.parse().map_err(|_| EXPECTED)?;
    match number.checked_mul(factor) {
        Some(0) => Err("the size is zero".into()),
        Some(size) => Ok(size),
        None => Err("the size is too large".into()),
    }
}

/// A file mode in octal; the owner must be able to read.
pub(super) fn mode(text: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
    match mode {
        Some(mode) if mode & 0o400 != 0 => Ok(mode),
        Some(_) => Err("its owner could not read such a file".into()),
        None => Err("expected an octal mode such as 0644".into()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_read_as_kubernetes_users_write_them() {
        for (text, millis) in [("250ms", 250), ("5s", 5000), ("1m30s", 90_000), ("0", 0), ("0s", 0), ("2h", 7_200_000)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for bad in [
            "",
            "5",
            "s",
            "-5s",
            "1.5s",
            "5 s",
            "5d",
            "99999999999999999999s",
            "18446744073709551615h",
            "9000h9000h",
            "1µs",
        ] {
            assert!(duration(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn quantities_and_modes_are_read() {
        assert_eq!(quantity("64Mi"), Ok(64 << 20));
        assert_eq!(quantity("1M"), Ok(1_000_000));
        for bad in ["", "Mi", "0", "-1", "1.5Gi", "1mi", "99999999999Gi"] {
            assert!(quantity(bad).is_err(), "{bad:?}");
        }
        assert_eq!(mode("0640"), Ok(0o640));
        for bad in ["", "0240", "8", "4755", "-1", "rw"] {
            assert!(mode(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn addresses_are_read() {
        let address = |text: &str| text.parse::<Listen>().map(|listen| listen.to_string());
        assert_eq!(address(":9533"), Ok("[::]:9533".into()));
        assert_eq!(address("localhost:1"), Ok("127.0.0.1:1".into()));
        assert_eq!(address("[::1]:1"), Ok("[::1]:1".into()));
        assert_eq!(address("off"), Ok("off".into()));
        for bad in ["", ":", "9533", "example.com:1", ":99999"] {
            assert!(address(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn directories_are_called_by_their_last_segment_or_as_said() {
        let named = |text: &str| text.parse::<NamedPath>().map(|named| (named.name, named.path));
        assert_eq!(named("/etc/app/"), Ok(("app".into(), "/etc/app/".into())));
        assert_eq!(named("x=/etc/app"), Ok(("x".into(), "/etc/app".into())));
        assert_eq!(named("/a=b"), Ok(("a=b".into(), "/a=b".into())));
        for bad in ["", "x=", "/", "=/etc", ".."] {
            assert!(named(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_a_grammar_panic(text in "\\PC{0,12}|[0-9a-zA-Z:=/.\\[\\]-]{0,24}") {
            let _ = (duration(&text), quantity(&text), mode(&text));
            let _ = (text.parse::<Listen>(), text.parse::<NamedPath>(), text.parse::<ObjectName>(), text.parse::<TemplateArg>());
        }
    }
}
