//! Where a request goes, and which answers are meant.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;

use hyper::Uri;

/// Where a request goes. Prints without the query, which may hold a token.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub(super) route: Route,
    /// Path and query as they stand in the request line.
    pub(super) target: Uri,
    /// Whether it prints without its path as well.
    is_secret: bool,
}

#[derive(Clone, PartialEq, Eq)]
pub(super) enum Route {
    /// `host` without the brackets of an IPv6 address.
    Tcp {
        tls: bool,
        host: String,
        port: u16,
        authority: String,
    },
    Unix(PathBuf),
}

/// Why a text is no [`Endpoint`]. Fatal: it comes from the command line. The text is not repeated, as it may hold a
/// password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseEndpointError {
    #[error("a URL must not hold credentials, as command lines are readable: use --reload-auth-file")]
    Credentials,
    #[error("a URL starts with http://, https:// or unix:///")]
    Scheme,
    #[error("the URL's host or port is missing or malformed")]
    Authority,
    #[error("a unix socket's URL is of the form unix:///path/to.sock:/uri")]
    Unix,
    #[error("not a URL; characters beyond ASCII and spaces must be percent-encoded")]
    Malformed,
    #[error("the user or the password in the URL has a control character, or a % without two hexadecimal digits")]
    User,
}

impl FromStr for Endpoint {
    type Err = ParseEndpointError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(rest) = text.strip_prefix("unix://") {
            let (path, target) = rest.split_once(":/").map_or((rest, ""), |(path, uri)| (path, uri));
            if !path.starts_with('/') || path.len() < 2 || path.contains('\0') {
                return Err(ParseEndpointError::Unix);
            }
            let target = format!("/{target}").parse().map_err(|_| ParseEndpointError::Malformed)?;
            return Ok(Self { route: Route::Unix(path.into()), target, is_secret: false });
        }
        let (scheme, rest) = text.split_once("://").ok_or(ParseEndpointError::Scheme)?;
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "http" => false,
            "https" => true,
            _ => return Err(ParseEndpointError::Scheme),
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        if rest[..end].contains('@') {
            return Err(ParseEndpointError::Credentials);
        }
        let uri: Uri = text.parse().map_err(|_| ParseEndpointError::Malformed)?;
        let authority = uri.authority().ok_or(ParseEndpointError::Authority)?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        let port = match authority.as_str().strip_prefix(authority.host()) {
            Some("") => Some(if tls { 443 } else { 80 }),
            Some(_) => authority.port_u16().filter(|&port| port > 0),
            None => None,
        };
        let port = port.filter(|_| !host.is_empty()).ok_or(ParseEndpointError::Authority)?;
        let target = uri.path_and_query().map_or("/", |target| target.as_str());
        // "http://host?query": a request line's path is never empty.
        let target = if target.starts_with('/') { target.to_owned() } else { format!("/{target}") };
        let target = target.parse().map_err(|_| ParseEndpointError::Malformed)?;
        let route = Route::Tcp { tls, host: host.to_owned(), port, authority: authority.as_str().to_owned() };
        Ok(Self { route, target, is_secret: false })
    }
}

/// A user and a password.
pub type User = (Vec<u8>, Vec<u8>);

/// What stands for itself, and bytes as `%` and two digits; `None`: it makes no sense, or breaks a header.
fn decoded(text: &str) -> Option<Vec<u8>> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        let digit = |byte: Option<u8>| char::from(byte?).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        let byte = if byte == b'%' { digit(bytes.next())? << 4 | digit(bytes.next())? } else { byte };
        decoded.push(Some(byte).filter(|byte| !byte.is_ascii_control())?);
    }
    Some(decoded)
}

impl Endpoint {
    /// Of a URL that may hold a user and a password; they come as they are meant, without `%`.
    pub fn with_user(text: &str) -> Result<(Self, Option<User>), ParseEndpointError> {
        let (scheme, rest) = text.split_once("://").ok_or(ParseEndpointError::Scheme)?;
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let Some((user, _)) = rest[..end].rsplit_once('@') else { return Ok((text.parse()?, None)) };
        let endpoint = format!("{scheme}://{}", &rest[user.len() + 1..]).parse()?;
        let (user, password) = user.split_once(':').unwrap_or((user, ""));
        let decoded = decoded(user).zip(decoded(password)).ok_or(ParseEndpointError::User)?;
        Ok((endpoint, Some(decoded)))
    }

    /// The same, and its path is never printed either.
    #[must_use]
    pub fn secret(self) -> Self {
        Self { is_secret: true, ..self }
    }

    /// Its host, without the brackets of an IPv6 address, and its port.
    #[must_use]
    pub fn host(&self) -> Option<(&str, u16)> {
        match &self.route {
            Route::Tcp { host, port, .. } => Some((host, *port)),
            Route::Unix(_) => None,
        }
    }

    /// Its scheme, host and port; for a socket, its path.
    pub(super) fn origin(&self) -> String {
        match &self.route {
            Route::Tcp { tls, host, port, .. } => {
                format!("http{}://{}:{port}", if *tls { "s" } else { "" }, host.to_ascii_lowercase())
            }
            Route::Unix(path) => format!("unix://{}", path.display()),
        }
    }

    /// As a proxy is asked for it; a socket has none.
    pub(super) fn url(&self) -> Option<Uri> {
        let Route::Tcp { tls, authority, .. } = &self.route else { return None };
        let url = Uri::builder().scheme(if *tls { "https" } else { "http" }).authority(authority.as_str());
        url.path_and_query(self.target.to_string()).build().ok()
    }

    /// Where a `Location` in its answer leads (RFC 3986, section 5.2; without `..`, which servers do not send).
    pub(super) fn redirected(&self, location: &str) -> Option<Self> {
        let scheme = match &self.route {
            Route::Tcp { tls: true, .. } => "https:",
            Route::Tcp { tls: false, .. } => "http:",
            Route::Unix(_) => return None,
        };
        let location = location.split('#').next().unwrap_or_default();
        if location.starts_with("//") {
            return format!("{scheme}{location}").parse().ok().map(|next: Self| self.as_secret(next));
        }
        let absolute = location.split_once(':').is_some_and(|(scheme, _)| !scheme.contains(['/', '?']));
        if absolute {
            return location.parse().ok().map(|next: Self| self.as_secret(next));
        }
        let folder = self.target.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        let target = match location.chars().next() {
            Some('/') => location.to_owned(),
            Some('?') => format!("{}{location}", self.target.path()),
            _ => format!("{folder}/{location}"),
        };
        Some(Self { route: self.route.clone(), target: target.parse().ok()?, is_secret: self.is_secret })
    }

    fn as_secret(&self, next: Self) -> Self {
        Self { is_secret: self.is_secret, ..next }
    }

    /// The last segment of its path, if it has one.
    #[must_use]
    pub fn last_segment(&self) -> Option<&str> {
        self.target.path().rsplit('/').next().filter(|last| !last.is_empty())
    }

    pub(super) fn path(&self) -> &str {
        self.target.path()
    }

    /// Another path and query of the same server; `None`: they are too long.
    pub(super) fn with_target(&self, target: &str) -> Option<Self> {
        Some(Self { route: self.route.clone(), target: target.parse().ok()?, is_secret: self.is_secret })
    }

    /// Whether its path ends with a slash.
    #[must_use]
    pub fn has_slash(&self) -> bool {
        self.target.path().ends_with('/')
    }

    /// Beside it on the same server: its path with this at the end. `None`: it would be too long.
    #[must_use]
    pub fn with_suffix(&self, suffix: &str) -> Option<Self> {
        let path = self.target.path();
        let target = match self.target.query() {
            Some(query) => format!("{path}{suffix}?{query}"),
            None => format!("{path}{suffix}"),
        };
        Some(Self { route: self.route.clone(), target: target.parse().ok()?, is_secret: self.is_secret })
    }

    /// Whether it is a unix socket's.
    #[must_use]
    pub fn is_unix(&self) -> bool {
        matches!(self.route, Route::Unix(_))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.route {
            Route::Tcp { tls, authority, .. } => write!(f, "http{}://{authority}", if *tls { "s" } else { "" })?,
            Route::Unix(path) => write!(f, "unix://{}:", path.display())?,
        }
        if self.is_secret {
            return f.write_str("/…");
        }
        f.write_str(self.target.path())?;
        if self.target.query().is_some() { f.write_str("?…") } else { Ok(()) }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Which status codes are meant: `2xx`, `200,204`, `200-299`, `2xx,304`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusCodes(Vec<RangeInclusive<u16>>);

/// Why a text is no [`StatusCodes`]. Fatal: it comes from the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("status codes are given as 2xx, 200, 200-299, or several of these with commas between, from 100 to 599")]
pub struct ParseStatusCodesError;

impl StatusCodes {
    /// Whether `status` is among them.
    #[must_use]
    pub fn contains(&self, status: u16) -> bool {
        self.0.iter().any(|range| range.contains(&status))
    }
}

impl FromStr for StatusCodes {
    type Err = ParseStatusCodesError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let code = |text: &str| match text.trim().parse::<u16>() {
            Ok(code @ 100..=599) => Ok(code),
            _ => Err(ParseStatusCodesError),
        };
        let range = |part: &str| {
            let lower = part.trim().to_ascii_lowercase();
            let (first, last) = match (lower.strip_suffix("xx"), lower.split_once('-')) {
                (Some(hundreds), _) => (code(&format!("{hundreds}00"))?, code(&format!("{hundreds}99"))?),
                (None, Some((first, last))) => (code(first)?, code(last)?),
                (None, None) => (code(&lower)?, code(&lower)?),
            };
            if first <= last { Ok(first..=last) } else { Err(ParseStatusCodesError) }
        };
        text.split(',').map(range).collect::<Result<_, _>>().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::net::credentials::Header;

    #[test]
    fn endpoints_are_read_and_printed_without_the_query() {
        for (text, shown) in [
            ("http://localhost", "http://localhost/"),
            ("http://localhost:9090/-/reload", "http://localhost:9090/-/reload"),
            ("HTTPS://[::1]:8443/x?token=canary#part", "https://[::1]:8443/x?…"),
            ("http://host?token=canary", "http://host/?…"),
            ("unix:///run/a.sock:/reload?x=canary", "unix:///run/a.sock:/reload?…"),
            ("unix:///run/a.sock", "unix:///run/a.sock:/"),
        ] {
            let endpoint: Endpoint = text.parse().unwrap();
            assert_eq!(endpoint.to_string(), shown);
            assert!(!format!("{endpoint:?}").contains("canary"));
        }
        let Route::Tcp { tls, host, port, .. } = "https://[::1]/".parse::<Endpoint>().unwrap().route else { panic!() };
        assert_eq!((tls, host.as_str(), port), (true, "::1", 443));
        for (text, error) in [
            ("http://user:canary@host/", ParseEndpointError::Credentials),
            ("https://canary@host", ParseEndpointError::Credentials),
            ("localhost:9090/-/reload", ParseEndpointError::Scheme),
            ("ftp://host/", ParseEndpointError::Scheme),
            ("unix://run/a.sock:/x", ParseEndpointError::Unix),
            ("unix:///", ParseEndpointError::Unix),
            ("http://host:0/", ParseEndpointError::Authority),
            ("http://host:99999/", ParseEndpointError::Authority),
            ("http://host/a b", ParseEndpointError::Malformed),
            ("http:///path", ParseEndpointError::Malformed),
        ] {
            assert_eq!(text.parse::<Endpoint>(), Err(error), "{text}");
        }
        assert!(ParseEndpointError::Credentials.to_string().contains("--reload-auth-file"));
    }

    #[test]
    fn user_and_password_of_a_url_are_taken_out_of_it() {
        for (text, shown, user, password) in [
            ("http://u:c4n4ry@host:1/x", "http://host:1/x", "u", "c4n4ry"),
            ("https://u%40x:a%3Ab%25@host", "https://host/", "u@x", "a:b%"),
            ("http://u@x:p@q@host/@", "http://host/@", "u@x", "p@q"),
            ("http://u@host", "http://host/", "u", ""),
        ] {
            let (endpoint, given) = Endpoint::with_user(text).unwrap();
            assert_eq!(endpoint.to_string(), shown);
            assert_eq!(given, Some((user.into(), password.into())), "{text}");
        }
        let (endpoint, user) = Endpoint::with_user("http://host/c4n4ry/x?c4n4ry@").unwrap();
        assert_eq!(user, None);
        let endpoint = endpoint.secret();
        let next = endpoint.redirected("/c4n4ry").unwrap();
        let there = endpoint.redirected("http://host/c4n4ry").unwrap();
        assert_eq!([endpoint.to_string(), next.to_string(), there.to_string()], ["http://host/…"; 3]);
        for (bad, error) in [
            ("http://u%0a:p@host/", ParseEndpointError::User),
            ("http://u:%1@host/", ParseEndpointError::User),
            ("http://u:%zz@host/", ParseEndpointError::User),
            ("ftp://u:p@host/", ParseEndpointError::Scheme),
            ("http://u:p@/", ParseEndpointError::Malformed),
        ] {
            assert_eq!(Endpoint::with_user(bad).err(), Some(error), "{bad}");
        }
    }

    #[test]
    fn status_codes_are_read_as_classes_codes_and_ranges() {
        let accepted = |text: &str| {
            let codes: StatusCodes = text.parse().unwrap();
            (100..=599).filter(move |&code| codes.contains(code))
        };
        assert!(accepted("2xx").eq(200..=299));
        assert!(accepted("2XX, 304").eq((200..=299).chain([304])));
        assert!(accepted("200,204").eq([200, 204]));
        assert!(accepted("200-204").eq(200..=204));
        for bad in
            ["", ",", "2xx,", "xx", "2x", "6xx", "0xx", "99", "600", "204-200", "200-", "-200", "200 204", "22xx"]
        {
            assert_eq!(bad.parse::<StatusCodes>(), Err(ParseStatusCodesError), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in ".{0,40}", tail in "[/:@?#\\[\\]a-z0-9.% -]{0,30}") {
            for text in [&text, &format!("http://{tail}"), &format!("https://{text}"), &format!("unix:///{tail}")] {
                if let Ok(endpoint) = text.parse::<Endpoint>() {
                    prop_assert!(!endpoint.target.path().is_empty());
                    let _ = endpoint.to_string();
                }
                let _ = text.parse::<Header>();
                let _ = text.parse::<StatusCodes>();
            }
        }

        #[test]
        fn a_password_in_a_url_is_never_accepted(user in "[a-z]{0,5}", password in "[a-z0-9:%]{0,9}", host in "[a-z]{1,9}") {
            let text = format!("http://{user}:{password}@{host}/");
            prop_assert_eq!(text.parse::<Endpoint>(), Err(ParseEndpointError::Credentials));
        }
    }
}
