//! Secrets as the handle offers them. A value is on the disk before the controller knows its name, and the controller
//! has let go of a name before its value is removed.

use super::control::Input;
use super::{Handle, Shared};
use crate::error::Error;
use crate::launch::Launch;
use phalanx_core::limits::SECRETS;
use phalanx_core::secret::check_name;
use phalanx_core::{NewEvent, Secret};
use std::collections::BTreeMap;
use std::sync::PoisonError;
use tokio::sync::oneshot;

impl Shared {
    /// Puts the values into what an agent is to start; a job that names none of them sees none.
    pub(super) fn reveal_to(&self, launch: &mut Launch) {
        let known = self.secrets.read().unwrap_or_else(PoisonError::into_inner);
        let named = launch.secret_names.iter();
        launch.secrets = named.filter_map(|name| Some((name.clone(), known.get(name)?.clone()))).collect();
    }
}

impl Handle {
    /// The names of all secrets.
    pub fn secrets(&self) -> Vec<String> {
        self.shared.secrets.read().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    /// Keeps a value for jobs that name it.
    pub async fn set_secret(&self, name: &str, value: String) -> Result<(), Error> {
        check_name(name)?;
        let secret = Secret::new(value)?;
        let inbox = self.inbox()?.clone();
        let full = {
            let known = self.shared.secrets.read().unwrap_or_else(PoisonError::into_inner);
            known.len() >= SECRETS && !known.contains_key(name)
        };
        if full {
            return Err(Error::TooManySecrets);
        }
        let (store, file, kept) = (self.shared.secret_store.clone(), name.to_owned(), secret.clone());
        tokio::task::spawn_blocking(move || store.set(&file, &kept))
            .await
            .map_err(|_| Error::Unavailable)??;
        self.shared.secrets.write().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), secret);
        let event = NewEvent::new(&self.actor, "secret.set", name, "");
        inbox.send(Input::KnowSecret { name: name.to_owned(), event }).await.map_err(|_| Error::Unavailable)
    }

    /// Forgets a value; refused while a job that is not over names it.
    pub async fn remove_secret(&self, name: &str) -> Result<(), Error> {
        if !self.shared.secrets.read().unwrap_or_else(PoisonError::into_inner).contains_key(name) {
            return Err(Error::NoSecret(name.chars().take(64).collect()));
        }
        let event = NewEvent::new(&self.actor, "secret.remove", name, "");
        let (answer, answered) = oneshot::channel();
        let input = Input::ForgetSecret { name: name.to_owned(), event, to: answer };
        self.inbox()?.send(input).await.map_err(|_| Error::Unavailable)?;
        answered.await.map_err(|_| Error::Unavailable)??;
        self.shared.secrets.write().unwrap_or_else(PoisonError::into_inner).remove(name);
        let (store, file) = (self.shared.secret_store.clone(), name.to_owned());
        tokio::task::spawn_blocking(move || store.remove(&file)).await.map_err(|_| Error::Unavailable)??;
        Ok(())
    }
}

/// Values by name, as the service holds them.
pub(super) type Known = BTreeMap<String, Secret>;
