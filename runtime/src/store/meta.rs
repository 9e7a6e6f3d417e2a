//! Single values that the server keeps for itself, such as whether the configuration's tenants were imported.

use super::{Store, Tx, error::StoreError, value::args};

impl Tx {
    /// The value of that name.
    pub async fn meta(&mut self, key: &str) -> Result<Option<String>, StoreError> {
        let row = self.row("SELECT value FROM meta WHERE key = $1", args![key]).await?;
        row.map(|row| row.fields().text()).transpose()
    }

    /// Gives it a value, in the place of an older one.
    pub async fn set_meta(&mut self, key: &str, value: &str) -> Result<(), StoreError> {
        let sql =
            "INSERT INTO meta (key, value) VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET value = excluded.value";
        self.execute(sql, args![key, value]).await.map(drop)
    }
}

impl Store {
    /// See [`Tx::meta`].
    pub async fn meta(&self, key: &str) -> Result<Option<String>, StoreError> {
        self.read().await?.meta(key).await
    }
}
