//! Keyed requests that run here, so that a repeat can wait for the first's answer.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{
    body::Bytes,
    http::{HeaderMap, StatusCode},
};
use tokio::sync::watch;
use weir_runtime::TenantId;

type Key = (TenantId, String);

/// One entry for each; as many as there are such requests. Cloning shares it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Flights(Arc<Mutex<HashMap<Key, Flight>>>);

#[derive(Debug)]
struct Flight {
    fingerprint: [u8; 32],
    told: watch::Receiver<Option<Told>>,
}

/// What those who wait are told.
#[derive(Debug, Clone)]
pub(super) enum Told {
    /// This is the answer.
    Whole(Arc<Whole>),
    /// It is being streamed to somebody else.
    Streams,
    /// The first went away without a word.
    Lost,
}

/// An answer in one body.
#[derive(Debug)]
pub(super) struct Whole {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// What a request with a key finds.
pub(super) enum Boarded {
    /// It is the first.
    Lead(Lead),
    /// The key is another body's.
    Another,
    /// The first is under way.
    Wait(Waiting),
}

/// The first, until it is dropped.
#[derive(Debug)]
pub(super) struct Lead {
    flights: Flights,
    key: Key,
    told: watch::Sender<Option<Told>>,
}

/// A repeat.
#[derive(Debug)]
pub(super) struct Waiting(watch::Receiver<Option<Told>>);

impl Flights {
    /// How many there are.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Joins those with the same key, or begins.
    pub(super) fn board(&self, tenant: TenantId, key: &str, fingerprint: [u8; 32]) -> Boarded {
        let key = (tenant, key.to_owned());
        let mut flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match flights.get(&key) {
            Some(flight) if flight.fingerprint == fingerprint => Boarded::Wait(Waiting(flight.told.clone())),
            Some(_) => Boarded::Another,
            None => {
                let (sender, told) = watch::channel(None);
                flights.insert(key.clone(), Flight { fingerprint, told });
                Boarded::Lead(Lead { flights: self.clone(), key, told: sender })
            }
        }
    }
}

impl Lead {
    /// Tells those who wait, and those who come before this is dropped.
    pub(super) fn tell(&self, told: Told) {
        self.told.send_replace(Some(told));
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        self.flights.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

impl Waiting {
    /// Waits for what the first says.
    pub(super) async fn heard(mut self) -> Told {
        match self.0.wait_for(Option::is_some).await {
            Ok(told) => told.clone().unwrap_or(Told::Lost),
            Err(_) => Told::Lost,
        }
    }
}
