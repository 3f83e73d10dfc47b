//! The values that templates get: keys, and bytes that are no text.
//!
//! Secrecy is noted where values are handed out, here and in `env`, not where they are used: a value that a loop, a macro
//! or a comparison took is a value that was read.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use minijinja::Error;
use minijinja::value::{DynObject, Enumerator, Object as Dynamic, ObjectExt, ObjectRepr, Value};

use super::explain::{MOST_LISTED, fault};
use crate::model::content::Content;
use crate::model::object::Object;
use crate::model::spool::SpoolError;

/// What the render of the present file has done.
#[derive(Debug, Default)]
pub(super) struct Notes {
    /// It has read a secret value, or text of a secret template.
    pub(super) secret: AtomicBool,
    /// The key that was asked for last and is not there.
    missing: Mutex<Option<Missing>>,
    /// It has used a binary value as text. Never taken back: that ends the render.
    misused: AtomicBool,
    /// A value could not be read. Never taken back.
    unread: OnceLock<SpoolError>,
}

/// A key that is not there, and those that are.
#[derive(Clone, Debug)]
pub(super) struct Missing {
    pub(super) asked: String,
    pub(super) keys: Vec<String>,
}

impl Notes {
    pub(super) fn missing(&self) -> Option<Missing> {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Why a value that was asked for could not be read.
    pub(super) fn unread(&self) -> Option<SpoolError> {
        self.unread.get().copied()
    }

    pub(super) fn secret(&self) -> bool {
        self.secret.load(Ordering::Relaxed)
    }

    pub(super) fn check_misuse(&self) -> Result<(), Error> {
        if self.misused.load(Ordering::Relaxed) {
            return Err(fault("a value that is not UTF-8 is used as text; b64encode and sha256 take it", None));
        }
        Ok(())
    }
}

/// One key's value; read and made for the engine when first asked for, then shared.
pub(super) struct KeyValue {
    bytes: Content,
    secret: bool,
    value: OnceLock<Value>,
}

pub(super) fn entries(object: &Object) -> BTreeMap<String, Arc<KeyValue>> {
    let entry = |bytes: &Content| KeyValue { bytes: bytes.clone(), secret: object.secret, value: OnceLock::new() };
    object.data.iter().map(|(key, bytes)| (key.clone(), Arc::new(entry(bytes)))).collect()
}

/// A map of keys that notes when the value of a secret one is taken. Names of keys are no secrets.
pub(super) struct Keys {
    entries: BTreeMap<String, Arc<KeyValue>>,
    notes: Arc<Notes>,
}

impl Keys {
    pub(super) fn value(entries: BTreeMap<String, Arc<KeyValue>>, notes: &Arc<Notes>) -> Value {
        Value::from_object(Self { entries, notes: Arc::clone(notes) })
    }
}

impl Dynamic for Keys {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.get_value_by_str(key.as_str()?)
    }

    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Value> {
        let Some(entry) = self.entries.get(key) else {
            let keys = self.entries.keys().take(MOST_LISTED).cloned().collect();
            let missing = Missing { asked: key.to_owned(), keys };
            *self.notes.missing.lock().unwrap_or_else(PoisonError::into_inner) = Some(missing);
            return None;
        };
        self.notes.secret.fetch_or(entry.secret, Ordering::Relaxed);
        let read = || match entry.bytes.read() {
            Ok(bytes) => text_or_binary(bytes, &self.notes),
            // The render is not used.
            Err(error) => {
                self.notes.unread.get_or_init(|| error);
                Value::UNDEFINED
            }
        };
        Some(entry.value.get_or_init(read).clone())
    }

    // Keys alone: whoever wants the values takes them by `get_value`.
    fn enumerate(self: &Arc<Self>) -> Enumerator {
        self.mapped_enumerator(|this| Box::new(this.entries.keys().map(|key| Value::from(key.as_str()))))
    }
}

// The engine prints what is in lists and maps by `Debug`.
impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.entries.keys()).finish()
    }
}

/// Bytes that are no UTF-8. The engine would put replacement characters in their place, so its own kind is not used.
pub(super) struct Binary {
    pub(super) bytes: Bytes,
    notes: Arc<Notes>,
}

/// The value of these bytes.
pub(super) fn text_or_binary(bytes: Bytes, notes: &Arc<Notes>) -> Value {
    match std::str::from_utf8(&bytes) {
        Ok(text) => Value::from(text),
        Err(_) => Value::from_object(Binary { bytes, notes: Arc::clone(notes) }),
    }
}

impl Dynamic for Binary {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn custom_cmp(self: &Arc<Self>, other: &DynObject) -> Option<std::cmp::Ordering> {
        Some(self.bytes.cmp(&other.downcast_ref::<Self>()?.bytes))
    }
}

// By way of this (`render` falls back to it) the engine makes text of a value, where no error can be returned.
impl fmt::Debug for Binary {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.notes.misused.store(true, Ordering::Relaxed);
        Ok(())
    }
}
