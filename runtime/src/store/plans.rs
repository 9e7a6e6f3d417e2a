//! Plans: named limits. `starter`, `professional` and `enterprise` are there from the beginning, and are rows like any other.

use super::{
    Store, Tx,
    audit::Event,
    change::Change,
    error::StoreError,
    limits::Limits,
    page,
    settings::{check_id, from_json},
    value::{Row, args},
};

/// A plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Its name.
    pub id: String,
    /// What it allows.
    pub limits: Limits,
    /// Grows by one with each edit.
    pub version: i64,
    /// When it was made.
    pub created_us: i64,
    /// When it was last edited.
    pub updated_us: i64,
}

fn plan(row: &Row) -> Result<Plan, StoreError> {
    let mut at = row.fields();
    let (id, limits) = (at.text()?, at.text()?);
    let limits = serde_json::from_str(&limits).map_err(|e| StoreError::corrupt("plans", &id, e))?;
    Ok(Plan { id, limits, version: at.int()?, created_us: at.int()?, updated_us: at.int()? })
}

fn checked(limits: &Limits) -> Result<String, StoreError> {
    limits.check().map_err(|e| StoreError::invalid(e.field, e.message))?;
    serde_json::to_string(limits).map_err(|e| StoreError::invalid("limits", e.to_string()))
}

impl Tx {
    /// A plan by its name.
    pub async fn plan(&mut self, id: &str) -> Result<Plan, StoreError> {
        let sql = "SELECT id, limits, version, created_us, updated_us FROM plans WHERE id = $1";
        let row = self.row(sql, args![id]).await?.ok_or_else(|| StoreError::missing("plan", id))?;
        plan(&row)
    }

    /// Plans in the order of their names, those after `after`.
    pub async fn plans(&mut self, after: &str, limit: u32) -> Result<Vec<Plan>, StoreError> {
        let sql = "SELECT id, limits, version, created_us, updated_us FROM plans WHERE id > $1 ORDER BY id LIMIT $2";
        self.rows(sql, args![after, page(limit)]).await?.iter().map(plan).collect()
    }
}

impl Store {
    /// See [`Tx::plan`].
    pub async fn plan(&self, id: &str) -> Result<Plan, StoreError> {
        self.read().await?.plan(id).await
    }

    /// See [`Tx::plans`]; `after` is empty for the first page.
    pub async fn plans(&self, after: &str, limit: u32) -> Result<Vec<Plan>, StoreError> {
        self.read().await?.plans(after, limit).await
    }
}

impl Change {
    /// Makes a plan.
    pub async fn create_plan(&mut self, id: &str, limits: &Limits) -> Result<Plan, StoreError> {
        check_id("id", id)?;
        let text = checked(limits)?;
        let sql = "INSERT INTO plans (id, limits, version, created_us, updated_us) VALUES ($1, $2, 1, $3, $3)";
        let at_us = self.at_us();
        self.tx().execute(sql, args![id, &text, at_us]).await.map_err(|e| e.or_exists("plan", id))?;
        self.record(Event::of("plan.create", "plan", id).after(&text)).await?;
        Ok(Plan { id: id.to_owned(), limits: limits.clone(), version: 1, created_us: at_us, updated_us: at_us })
    }

    /// Replaces a plan's limits. `version` is the one that the caller has read.
    pub async fn update_plan(&mut self, id: &str, version: i64, limits: &Limits) -> Result<Plan, StoreError> {
        let text = checked(limits)?;
        let before = self.tx().plan(id).await?;
        self.check_tenants(id, limits).await?;
        let at_us = self.at_us();
        let sql = "UPDATE plans SET limits = $3, version = version + 1, updated_us = $4 WHERE id = $1 AND version = $2";
        let changed = self.tx().execute(sql, args![id, version, &text, at_us]).await?;
        if changed == 0 {
            return Err(StoreError::Conflict {
                kind: "plan",
                id: id.to_owned(),
                expected: version,
                found: before.version,
            });
        }
        let old = checked(&before.limits)?;
        self.record(Event::of("plan.update", "plan", id).before(&old).after(&text)).await?;
        Ok(Plan { limits: limits.clone(), version: version + 1, updated_us: at_us, ..before })
    }

    /// The plan's new limits agree with what each of its tenants has instead of them.
    async fn check_tenants(&mut self, id: &str, limits: &Limits) -> Result<(), StoreError> {
        let sql = "SELECT id, overrides FROM tenants WHERE plan = $1 AND status <> 'deleted' ORDER BY id";
        for row in self.tx().rows(sql, args![id]).await? {
            let mut at = row.fields();
            let (tenant, overrides) = (at.text()?, at.text()?);
            let overrides = from_json("tenants", &tenant, &overrides)?;
            Limits::effective(limits, &overrides)
                .check()
                .map_err(|e| StoreError::invalid(e.field, format!("with tenant `{tenant}`: {}", e.message)))?;
        }
        Ok(())
    }

    /// Removes a plan that no tenant has, or had when it was deleted.
    pub async fn delete_plan(&mut self, id: &str, version: i64) -> Result<(), StoreError> {
        let before = self.tx().plan(id).await?;
        let used = "SELECT id FROM tenants WHERE plan = $1 ORDER BY id LIMIT 1";
        if let Some(row) = self.tx().row(used, args![id]).await? {
            let by = format!("tenant `{}` has it", row.fields().text()?);
            return Err(StoreError::Needed { kind: "plan", id: id.to_owned(), by });
        }
        let sql = "DELETE FROM plans WHERE id = $1 AND version = $2";
        if self.tx().execute(sql, args![id, version]).await? == 0 {
            return Err(StoreError::Conflict {
                kind: "plan",
                id: id.to_owned(),
                expected: version,
                found: before.version,
            });
        }
        let old = checked(&before.limits)?;
        self.record(Event::of("plan.delete", "plan", id).before(&old)).await
    }
}
