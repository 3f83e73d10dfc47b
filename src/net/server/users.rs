//! `--listen-users-file`: names with the bcrypt hashes of their passwords, as Prometheus's web configuration has them.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bcrypt::HashParts;
use hmac::digest::KeyInit as _;
use hmac::{Hmac, Mac as _};
use hyper::header::HeaderValue;
use serde::Deserialize;
use sha2::Sha256;
use tokio::sync::Semaphore;

use super::newest::Newest;
use crate::net::credentials::FileError;

const FLAG: &str = "--listen-users-file";
/// What a hash may cost: a check at the most expensive takes seconds.
const COSTS: std::ops::RangeInclusive<u32> = 4..=16;
/// How many credentials are known again without a check.
const REMEMBERED: usize = 64;

/// By name, each with a hash that bcrypt takes.
type Hashes = BTreeMap<String, String>;

pub(super) struct Users {
    hashes: Newest<Hashes>,
    /// One check at a time: more would take the processor from what Trimtab is for.
    turn: Arc<Semaphore>,
    /// Of this process alone.
    key: [u8; 32],
    /// What stands for credentials that were right. Nobody can get from it to a password but by guessing, with the key.
    right: Mutex<VecDeque<[u8; 32]>>,
}

/// The rest of such a file is not about users.
#[derive(Deserialize)]
struct File {
    #[serde(default)]
    basic_auth_users: Option<Hashes>,
}

impl Users {
    pub fn load(path: &Path) -> Result<Self, FileError> {
        let mut key = [0; 32];
        rustix::rand::getrandom(&mut key, rustix::rand::GetRandomFlags::empty())
            .map_err(|error| FileError::new(FLAG, path, format!("random bytes: {error}")))?;
        let named = path.to_owned();
        let parse = move |bytes: &[Vec<u8>]| parse(&bytes[0]).map_err(|why| FileError::new(FLAG, &named, why));
        Ok(Self {
            hashes: Newest::load(vec![(FLAG, path.to_owned())], Box::new(parse))?,
            turn: Arc::new(Semaphore::new(1)),
            key,
            right: Mutex::default(),
        })
    }

    pub async fn admit(&self, authorization: Option<&HeaderValue>) -> bool {
        let Some((name, password)) = authorization.and_then(|value| basic(value.as_bytes())) else { return false };
        let hashes = self.hashes.get();
        let own = hashes.get(&name);
        // Whoever is not known is checked as well, so that the time does not show who is.
        let Some(hash) = own.or_else(|| hashes.values().next()).cloned() else { return false };
        let mark = self.mark(&name, &hash, &password);
        let known = || own.is_some() && self.remembered().contains(&mark);
        if known() {
            return true;
        }
        let Ok(turn) = self.turn.clone().acquire_owned().await else { return false };
        // While it waited, another request may have had the same.
        if known() {
            return true;
        }
        let check = tokio::task::spawn_blocking(move || {
            let right = bcrypt::verify(password, &hash).unwrap_or(false);
            // Also where nobody waits for it any more.
            drop(turn);
            right
        });
        let right = check.await.unwrap_or(false) && own.is_some();
        if right {
            let mut remembered = self.remembered();
            remembered.push_back(mark);
            if remembered.len() > REMEMBERED {
                remembered.pop_front();
            }
        }
        right
    }

    fn remembered(&self) -> std::sync::MutexGuard<'_, VecDeque<[u8; 32]>> {
        self.right.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// With the hash in it: a new password has another one.
    fn mark(&self, name: &str, hash: &str, password: &[u8]) -> [u8; 32] {
        let mut block = [0; 64];
        block[..self.key.len()].copy_from_slice(&self.key);
        let mut mac = Hmac::<Sha256>::new(&block.into());
        for part in [name.as_bytes(), hash.as_bytes(), password] {
            mac.update(&part.len().to_be_bytes());
            mac.update(part);
        }
        mac.finalize().into_bytes().into()
    }
}

/// Name and password of `Basic …` (RFC 7617).
fn basic(value: &[u8]) -> Option<(String, Vec<u8>)> {
    let (scheme, encoded) = value.split_at_checked("Basic ".len())?;
    let pair = STANDARD.decode(encoded).ok().filter(|_| scheme.eq_ignore_ascii_case(b"Basic "))?;
    let colon = pair.iter().position(|&byte| byte == b':')?;
    Some((String::from_utf8(pair[..colon].to_vec()).ok()?, pair[colon + 1..].to_vec()))
}

/// Why not never holds a word of it but a name.
fn parse(bytes: &[u8]) -> Result<Hashes, String> {
    let no_yaml = |_| "it is no YAML with a mapping basic_auth_users, of names to bcrypt hashes".to_owned();
    let text = str::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned())?;
    let file: Option<File> = serde_saphyr::from_str(text).map_err(no_yaml)?;
    let hashes = file.and_then(|file| file.basic_auth_users).unwrap_or_default();
    if hashes.is_empty() {
        return Err("it has no users below basic_auth_users: nobody could ask".to_owned());
    }
    for (name, hash) in &hashes {
        let parts: Result<HashParts, _> = hash.parse();
        let parts = parts.map_err(|_| format!("user {name:?} has no bcrypt hash: htpasswd -nB {name} makes one"))?;
        if !COSTS.contains(&parts.get_cost()) {
            let (least, most) = COSTS.into_inner();
            return Err(format!("the hash of user {name:?} has a cost of {}: {least} to {most}", parts.get_cost()));
        }
    }
    Ok(hashes)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use tempfile::TempDir;
    use tokio::time::timeout;

    use super::*;

    fn users(dir: &TempDir, text: &str) -> Users {
        let path = dir.path().join("users");
        fs::write(&path, text).unwrap();
        Users::load(&path).unwrap()
    }

    fn hash(password: &str) -> String {
        bcrypt::hash(password, 4).unwrap()
    }

    fn header(pair: &str) -> HeaderValue {
        format!("bAsic {}", STANDARD.encode(pair)).parse().unwrap()
    }

    #[tokio::test]
    async fn only_what_was_right_is_remembered_and_only_as_long_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let users = users(&dir, &format!("basic_auth_users: {{me: {}, you: {}}}", hash("a:b"), hash("c")));
        for _ in 0..2 {
            for (pair, right) in
                [("me:a:b", true), ("me:c", false), ("you:c", true), ("nobody:a:b", false), ("me", false)]
            {
                assert_eq!(users.admit(Some(&header(pair))).await, right, "{pair}");
            }
            assert_eq!(users.remembered().len(), 2);
        }
        for other in ["", "Basic", "Basic !", "Bearer bWU6YTpi"] {
            assert!(!users.admit(Some(&other.parse().unwrap())).await, "{other}");
        }
        assert!(!users.admit(None).await);
        fs::write(dir.path().join("users"), format!("basic_auth_users: {{me: {}}}", hash("new"))).unwrap();
        for (pair, right) in [("me:a:b", false), ("you:c", false), ("me:new", true)] {
            assert_eq!(users.admit(Some(&header(pair))).await, right, "{pair}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_password_is_checked_at_a_time_and_who_is_known_does_not_wait() {
        let dir = tempfile::tempdir().unwrap();
        let users = users(&dir, &format!("basic_auth_users: {{me: {}}}", hash("a")));
        assert!(users.admit(Some(&header("me:a"))).await);
        let turn = users.turn.clone().acquire_owned().await.unwrap();
        assert!(users.admit(Some(&header("me:a"))).await);
        assert!(
            timeout(Duration::from_hours(1), users.admit(Some(&header("me:b")))).await.is_err(),
            "it does not wait for its turn"
        );
        drop(turn);
        assert!(!users.admit(Some(&header("me:b"))).await);
    }
}
