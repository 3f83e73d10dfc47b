//! `--url-hosts`: whom a URL may name that stands in an object, and not in a flag.

use std::str::FromStr;

use crate::net::endpoint::Endpoint;

/// Hosts by name. Nothing is looked up: what a name resolves to is its owner's affair.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hosts(Vec<(String, Option<u16>)>);

/// Why a text is no [`Hosts`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no HOST or HOST:PORT, such as grafana.com, [fd00::1] or files.example:8080; a wildcard is not there")]
pub struct ParseHostsError(String);

impl FromStr for Hosts {
    type Err = ParseHostsError;

    /// Several have commas between.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let host = |item: &str| {
            let item = item.trim();
            let error = || ParseHostsError(item.to_owned());
            if item.contains(['/', '?', '#', '*', '@']) {
                return Err(error());
            }
            let endpoint: Endpoint = format!("http://{item}/").parse().map_err(|_| error())?;
            let (host, port) = endpoint.host().ok_or_else(error)?;
            let has_port = item.rsplit_once(':').is_some_and(|(_, port)| !port.contains(']'));
            Ok((host.to_ascii_lowercase(), has_port.then_some(port)))
        };
        let items = text.split(',').filter(|item| !item.trim().is_empty());
        items.map(host).collect::<Result<_, _>>().map(Self)
    }
}

impl Hosts {
    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether it may be asked: its name is there, with its port or without one.
    #[must_use]
    pub fn allow(&self, endpoint: &Endpoint) -> bool {
        let Some((host, port)) = endpoint.host() else { return false };
        self.0.iter().any(|(allowed, only)| allowed.eq_ignore_ascii_case(host) && only.is_none_or(|only| only == port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_allowed_by_their_whole_name_and_port() {
        let hosts: Hosts = "Grafana.com, files.example:8080,[::1],".parse().unwrap();
        for (url, allowed) in [
            ("https://grafana.com/x", true),
            ("http://GRAFANA.com:99/x", true),
            ("http://files.example:8080/", true),
            ("http://files.example/", false),
            ("https://files.example/8080", false),
            ("http://[::1]:3/", true),
            ("http://x.grafana.com/", false),
            ("http://grafana.com.evil.example/", false),
            ("http://evil.example/grafana.com", false),
        ] {
            assert_eq!(hosts.allow(&url.parse().unwrap()), allowed, "{url}");
        }
        assert!(Hosts::default().is_empty() && !Hosts::default().allow(&"http://localhost/".parse().unwrap()));
        for bad in ["*.example", "http://x", "x/y", "x:0", "x:y", "a b", "u@x"] {
            assert!(bad.parse::<Hosts>().is_err(), "{bad}");
        }
    }
}
