//! jimmidyson/configmap-reload (0.15): its seven flags.

use std::ffi::OsString;

use super::arguments::Arguments;
use super::{Flags, Refused};

const KNOWN: [&str; 7] = [
    "volume-dir",
    "webhook-url",
    "webhook-method",
    "webhook-status-code",
    "webhook-retries",
    "web.listen-address",
    "web.telemetry-path",
];

pub(super) fn translate(settings: &[OsString]) -> Result<Flags, Refused> {
    // What Go's flag package does not know ends with 2, what is missing with 1.
    let given = Arguments::parse(settings, &KNOWN, 2)?;
    let missing = |message: &str| Refused { message: message.to_owned(), code: 1 };
    if given.last("volume-dir").is_none() {
        return Err(missing("Missing volume-dir"));
    }
    if given.last("webhook-url").is_none() {
        return Err(missing("Missing webhook-url"));
    }
    let mut flags = Flags::default();
    flags.observe(given.all("volume-dir"));
    for url in given.all("webhook-url") {
        if flags.reload_url(url) && given.all("webhook-url").count() > 1 {
            return Err(given.refused(
                "several webhook-url, and one with a user in it: Trimtab sends a hook's credentials to no other one; run a \
                 sidecar for each, or give all of them none",
            ));
        }
    }
    flags.add("--reload-method", given.last("webhook-method").unwrap_or("POST"));
    flags.add("--reload-status", given.last("webhook-status-code").unwrap_or("200"));
    match given.last("webhook-retries").unwrap_or("1").parse::<i64>() {
        Ok(0) => {
            return Err(given.refused("webhook-retries 0 calls no webhook at all: leave it out, or give at least 1"));
        }
        // Without end.
        Ok(attempts) if attempts < 0 => flags.add("--reload-attempts", u32::MAX.to_string()),
        Ok(attempts) => flags.add("--reload-attempts", attempts.to_string()),
        Err(_) => return Err(given.refused("webhook-retries is no number")),
    }
    if given.last("web.telemetry-path").is_some_and(|path| path != "/metrics") {
        return Err(given.refused("web.telemetry-path: Trimtab serves its metrics at /metrics; scrape them there"));
    }
    flags.add("--listen", given.last("web.listen-address").unwrap_or(":9533"));
    flags.add("--metrics-as", "configmap-reload");
    // Several of them may be in one Pod.
    flags.add("--admin", "off");
    Ok(flags)
}

#[cfg(test)]
mod tests {
    use super::super::split;
    use super::*;

    fn flags(line: &str) -> Result<String, Refused> {
        translate(&split(line)).map(|flags| flags.line())
    }

    #[test]
    fn each_of_the_seven_flags_has_one_of_trimtabs() {
        for (line, expected) in [
            (
                "--volume-dir=/etc/config --webhook-url=http://127.0.0.1:9090/-/reload",
                "--observe-dir=config=/etc/config --reload-url=http://127.0.0.1:9090/-/reload --reload-method=POST \
                 --reload-status=200 --reload-attempts=1 --listen=:9533 --metrics-as=configmap-reload --admin=off",
            ),
            (
                "-volume-dir /a/x -volume-dir /b/x -webhook-url http://a/ -webhook-url http://b/ -webhook-method GET \
                 -webhook-status-code 204 -webhook-retries -1 -web.listen-address 127.0.0.1:1 -web.telemetry-path /metrics",
                "--observe-dir=x=/a/x --observe-dir=x-2=/b/x --reload-url=http://a/ --reload-url=http://b/ \
                 --reload-method=GET --reload-status=204 --reload-attempts=4294967295 --listen=127.0.0.1:1 --metrics-as=configmap-reload --admin=off",
            ),
            (
                "-volume-dir=/a -webhook-url=http://me:pass@a/ -webhook-retries=3",
                "--observe-dir=a=/a --reload-url=http://a/ --reload-user=$RELOAD_URL_USER --reload-password=$RELOAD_URL_PASSWORD \
                 --reload-method=POST --reload-status=200 --reload-attempts=3 --listen=:9533 --metrics-as=configmap-reload --admin=off",
            ),
        ] {
            assert_eq!(flags(line).unwrap(), expected);
        }
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_by_name_with_the_peers_exit_code() {
        for (line, code, said) in [
            ("--webhook-url=http://a/", 1, "volume-dir"),
            ("--volume-dir=/a", 1, "webhook-url"),
            ("--volume-dir=/a --other=1", 2, "other is not known"),
            ("--volume-dir=/a --webhook-url=http://a/ --webhook-retries=0", 2, "webhook-retries 0"),
            ("--volume-dir=/a --webhook-url=http://a/ --web.telemetry-path=/m", 2, "/metrics"),
            ("--volume-dir=/a --webhook-url=http://u:p@a/ --webhook-url=http://b/", 2, "several webhook-url"),
        ] {
            let refused = flags(line).unwrap_err();
            assert!(refused.code == code && refused.message.contains(said), "{line}: {refused:?}");
        }
    }
}
