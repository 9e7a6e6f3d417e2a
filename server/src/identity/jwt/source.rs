//! Where an issuer's keys come from, and how often they are asked for. The last good set is kept through an outage,
//! however long; a key that a new set does not have is gone at once.

use std::{
    fs,
    io::{self, Read},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::{sync::Mutex, time::Instant};

use super::{
    KeyPlace,
    key_set::{KEY_SET_BYTES_MAX, KeySet, KeySetError},
};

/// At most one request to an issuer in this time, whoever wants it.
pub const REFRESH_PAUSE: Duration = Duration::from_secs(60);
/// How old keys may get before they are asked for again; an issuer that takes a key back is heard within this time.
pub const REFRESH_EVERY: Duration = Duration::from_secs(300);
/// How long an issuer may take to answer, all in all.
const FETCH_TIME_MAX: Duration = Duration::from_secs(5);

/// Keys that could not be had.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The file cannot be read.
    #[error("cannot be read: {0}")]
    File(#[from] io::Error),
    /// The issuer did not answer, or not in time.
    #[error("no answer: {0}")]
    NoAnswer(String),
    /// It answered something else: redirections are not followed.
    #[error("status {0}")]
    Status(u16),
    /// It is not JSON by its own account.
    #[error("content-type is not JSON")]
    Type,
    /// The answer is not a set of keys.
    #[error(transparent)]
    KeySet(#[from] KeySetError),
}

/// One issuer's keys.
#[derive(Debug)]
pub(super) struct Source {
    place: KeyPlace,
    keys: ArcSwap<KeySet>,
    /// When it was last asked. Whoever holds the lock asks; the others wait for what comes of it.
    asked: Mutex<Option<Instant>>,
}

impl Source {
    /// Without keys yet.
    pub(super) fn new(place: KeyPlace) -> Self {
        Source { place, keys: ArcSwap::default(), asked: Mutex::new(None) }
    }

    /// The keys there are.
    pub(super) fn keys(&self) -> Arc<KeySet> {
        self.keys.load_full()
    }

    /// Asks again, unless somebody did within `pause`. True when there are other keys than `seen` now.
    pub(super) async fn refresh(&self, seen: &Arc<KeySet>, pause: Duration) -> Result<bool, FetchError> {
        let mut asked = self.asked.lock().await;
        if !Arc::ptr_eq(seen, &self.keys.load()) {
            return Ok(true);
        }
        let now = Instant::now();
        if asked.is_some_and(|at| now < at + pause) {
            return Ok(false);
        }
        *asked = Some(now);
        let place = self.place.clone();
        let fetched = tokio::task::spawn_blocking(move || place.fetch()).await;
        let set = KeySet::parse(&fetched.map_err(|e| FetchError::NoAnswer(e.to_string()))??)?;
        let changed = set != **self.keys.load();
        if changed {
            self.keys.store(Arc::new(set));
        }
        Ok(changed)
    }
}

impl KeyPlace {
    /// The bytes that are there. Blocks.
    fn fetch(&self) -> Result<Vec<u8>, FetchError> {
        match self {
            KeyPlace::File(path) => bounded(fs::File::open(path)?),
            KeyPlace::Url(url) => {
                let agent: ureq::Agent = ureq::Agent::config_builder()
                    .timeout_global(Some(FETCH_TIME_MAX))
                    .max_redirects(0)
                    .http_status_as_error(false)
                    .proxy(None)
                    .build()
                    .into();
                let answer = agent.get(url).header("accept", "application/jwk-set+json, application/json").call();
                let answer = answer.map_err(|e| FetchError::NoAnswer(e.to_string()))?;
                if answer.status() != 200 {
                    return Err(FetchError::Status(answer.status().as_u16()));
                }
                let kind = answer.headers().get("content-type").and_then(|kind| kind.to_str().ok()).unwrap_or_default();
                let kind = kind.split(';').next().unwrap_or_default().trim();
                if !["application/json", "application/jwk-set+json"].iter().any(|json| kind.eq_ignore_ascii_case(json))
                {
                    return Err(FetchError::Type);
                }
                bounded(answer.into_body().into_reader()).map_err(|error| match error {
                    FetchError::File(error) => FetchError::NoAnswer(error.to_string()),
                    other => other,
                })
            }
        }
    }
}

/// One byte more than a set may have, so that what is too large is seen to be; of what was compressed, after
/// decompression.
fn bounded(reader: impl Read) -> Result<Vec<u8>, FetchError> {
    let mut bytes = Vec::new();
    reader.take(KEY_SET_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
    match bytes.len() <= KEY_SET_BYTES_MAX {
        true => Ok(bytes),
        false => Err(KeySetError::TooLarge.into()),
    }
}

#[cfg(test)]
mod tests;
