//! Tenants: who pays. A tenant is never removed, only deleted by status: its number is never given to another, and the ledger
//! names it for ever.

use super::{
    Store, Tx,
    audit::Event,
    change::Change,
    error::StoreError,
    limits::Limits,
    page,
    settings::{Status, TenantSettings, check_tenant_id, from_json, json},
    value::{Row, args},
};

/// The columns, once, in the order in which [`tenant`] reads them; `$rest` says which rows.
macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT id, number, name, domain, status, reason, plan, overrides, models, default_models, price_ppm, flags, \
             ip_allow, retention_days, retain_bodies, metadata, version, created_us, updated_us FROM tenants ",
            $rest
        )
    };
}

/// A tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant {
    /// Its name in every place.
    pub id: String,
    /// Its number for the scheduler: dense, from 1, never used again.
    pub number: u32,
    /// What the operator has set.
    pub settings: TenantSettings,
    /// Grows by one with each edit.
    pub version: i64,
    /// When it was made.
    pub created_us: i64,
    /// When it was last edited.
    pub updated_us: i64,
}

/// A tenant to be made.
#[derive(Debug, Clone)]
pub struct NewTenant {
    /// Its id, for ever.
    pub id: String,
    /// Everything else.
    pub settings: TenantSettings,
}

/// A row of `tenants`.
fn tenant(row: &Row) -> Result<Tenant, StoreError> {
    let mut at = row.fields();
    let id = at.text()?;
    let number = at.int()?;
    let number =
        u32::try_from(number).map_err(|_| StoreError::corrupt("tenants", &id, "its number is out of range"))?;
    let (name, domain, status, reason, plan) =
        (at.text()?, at.text_or_none()?, at.text()?, at.text_or_none()?, at.text()?);
    let status = Status::parse(&status).ok_or_else(|| StoreError::corrupt("tenants", &id, "its status is unknown"))?;
    let overrides = from_json("tenants", &id, &at.text()?)?;
    let models = at.text_or_none()?.map(|text| from_json("tenants", &id, &text)).transpose()?;
    let default_models = from_json("tenants", &id, &at.text()?)?;
    let price_ppm = from_json("tenants", &id, &at.text()?)?;
    let flags = from_json("tenants", &id, &at.text()?)?;
    let ip_allow = from_json("tenants", &id, &at.text()?)?;
    let retention_days = at.int_or_none()?.map(u32::try_from).transpose();
    let retention_days = retention_days.map_err(|e| StoreError::corrupt("tenants", &id, e))?;
    let retain_bodies = at.flag()?;
    let metadata = from_json("tenants", &id, &at.text()?)?;
    let settings = TenantSettings {
        name,
        domain,
        status,
        reason,
        plan,
        overrides,
        models,
        default_models,
        price_ppm,
        flags,
        ip_allow,
        retention_days,
        retain_bodies,
        metadata,
    };
    Ok(Tenant { id, number, settings, version: at.int()?, created_us: at.int()?, updated_us: at.int()? })
}

impl Tx {
    /// A tenant by its id, deleted ones among them.
    pub async fn tenant(&mut self, id: &str) -> Result<Tenant, StoreError> {
        let row =
            self.row(select!("WHERE id = $1"), args![id]).await?.ok_or_else(|| StoreError::missing("tenant", id))?;
        tenant(&row)
    }

    /// Tenants in the order of their ids, those after `after`, deleted ones among them.
    pub async fn tenants(&mut self, after: &str, limit: u32) -> Result<Vec<Tenant>, StoreError> {
        let sql = select!("WHERE id > $1 ORDER BY id LIMIT $2");
        self.rows(sql, args![after, page(limit)]).await?.iter().map(tenant).collect()
    }
}

impl Store {
    /// See [`Tx::tenant`].
    pub async fn tenant(&self, id: &str) -> Result<Tenant, StoreError> {
        self.read().await?.tenant(id).await
    }

    /// See [`Tx::tenants`]; `after` is empty for the first page.
    pub async fn tenants(&self, after: &str, limit: u32) -> Result<Vec<Tenant>, StoreError> {
        self.read().await?.tenants(after, limit).await
    }
}

impl Change {
    /// Makes a tenant and gives it the next number.
    pub async fn create_tenant(&mut self, new: &NewTenant) -> Result<Tenant, StoreError> {
        check_tenant_id(&new.id)?;
        let texts = Texts::of(&new.settings)?;
        self.check_fit(&new.settings).await?;
        let number = self.tx().next("tenant").await?;
        let at_us = self.at_us();
        let s = &new.settings;
        let sql = "INSERT INTO tenants (id, number, name, domain, status, reason, plan, overrides, models, default_models, \
                   price_ppm, flags, ip_allow, retention_days, retain_bodies, metadata, version, created_us, updated_us) \
                   VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, 1, $17, $17)";
        let values = args![
            &new.id,
            number,
            &s.name,
            &s.domain,
            s.status.word(),
            &s.reason,
            &s.plan,
            &texts.overrides,
            &texts.models,
            &texts.default_models,
            &texts.price_ppm,
            &texts.flags,
            &texts.ip_allow,
            s.retention_days.map(i64::from),
            s.retain_bodies,
            &texts.metadata,
            at_us,
        ];
        self.tx().execute(sql, values).await.map_err(|e| e.or_exists("tenant", &new.id))?;
        let event = Event::of("tenant.create", "tenant", &new.id).tenant(Some(&new.id)).after(&texts.whole);
        self.record(event).await?;
        let number = u32::try_from(number).map_err(|_| StoreError::invalid("number", "there are too many tenants"))?;
        Ok(Tenant {
            id: new.id.clone(),
            number,
            settings: new.settings.clone(),
            version: 1,
            created_us: at_us,
            updated_us: at_us,
        })
    }

    /// Replaces a tenant's settings; `version` is the one that the caller has read. A deleted tenant stays as it is. What changed of
    /// its status is an action of its own in the log (`tenant.suspend`, ...).
    pub async fn update_tenant(
        &mut self,
        id: &str,
        version: i64,
        settings: &TenantSettings,
    ) -> Result<Tenant, StoreError> {
        let texts = Texts::of(settings)?;
        let before = self.tx().tenant(id).await?;
        if before.version != version {
            return Err(conflict(id, version, before.version));
        }
        if before.settings.status == Status::Deleted {
            return Err(StoreError::invalid("status", "a deleted tenant stays deleted"));
        }
        self.check_fit(settings).await?;
        let at_us = self.at_us();
        let s = settings;
        let sql = "UPDATE tenants SET name = $3, domain = $4, status = $5, reason = $6, plan = $7, overrides = $8, models = $9, \
                   default_models = $10, price_ppm = $11, flags = $12, ip_allow = $13, retention_days = $14, \
                   retain_bodies = $15, metadata = $16, updated_us = $17, version = version + 1 \
                   WHERE id = $1 AND version = $2";
        let values = args![
            id,
            version,
            &s.name,
            &s.domain,
            s.status.word(),
            &s.reason,
            &s.plan,
            &texts.overrides,
            &texts.models,
            &texts.default_models,
            &texts.price_ppm,
            &texts.flags,
            &texts.ip_allow,
            s.retention_days.map(i64::from),
            s.retain_bodies,
            &texts.metadata,
            at_us,
        ];
        if self.tx().execute(sql, values).await.map_err(|e| e.or_exists("tenant", id))? == 0 {
            let found = self.tx().tenant(id).await?.version;
            return Err(conflict(id, version, found));
        }
        let action = match (before.settings.status, settings.status) {
            (old, new) if old == new => "tenant.update",
            (_, Status::Pending) => "tenant.pend",
            (_, Status::Trial) => "tenant.try",
            (_, Status::Active) => "tenant.activate",
            (_, Status::Suspended) => "tenant.suspend",
            (_, Status::Deleted) => "tenant.delete",
        };
        let old = json("settings", &before.settings)?;
        let event = Event::of(action, "tenant", id).tenant(Some(id)).before(&old).after(&texts.whole);
        self.record(event.reason(settings.reason.as_deref())).await?;
        Ok(Tenant { settings: settings.clone(), version: version + 1, updated_us: at_us, ..before })
    }

    /// Gives a tenant another status, for a reason. See [`Change::update_tenant`].
    pub async fn set_status(
        &mut self,
        id: &str,
        version: i64,
        status: Status,
        reason: Option<&str>,
    ) -> Result<Tenant, StoreError> {
        let before = self.tx().tenant(id).await?;
        let settings = TenantSettings { status, reason: reason.map(str::to_owned), ..before.settings };
        self.update_tenant(id, version, &settings).await
    }

    /// The plan exists, and agrees with the overrides.
    async fn check_fit(&mut self, settings: &TenantSettings) -> Result<(), StoreError> {
        let plan = self.tx().plan(&settings.plan).await?;
        let effective = Limits::effective(&plan.limits, &settings.overrides);
        effective.check().map_err(|e| {
            StoreError::invalid(format!("overrides.{}", e.field), format!("with plan `{}`: {}", plan.id, e.message))
        })
    }
}

fn conflict(id: &str, expected: i64, found: i64) -> StoreError {
    StoreError::Conflict { kind: "tenant", id: id.to_owned(), expected, found }
}

/// The settings that are kept as JSON.
struct Texts {
    overrides: String,
    models: Option<String>,
    default_models: String,
    price_ppm: String,
    flags: String,
    ip_allow: String,
    metadata: String,
    /// All of the settings, for the log.
    whole: String,
}

impl Texts {
    fn of(settings: &TenantSettings) -> Result<Self, StoreError> {
        settings.check()?;
        Ok(Texts {
            overrides: json("overrides", &settings.overrides)?,
            models: settings.models.as_ref().map(|models| json("models", models)).transpose()?,
            default_models: json("default_models", &settings.default_models)?,
            price_ppm: json("price_ppm", &settings.price_ppm)?,
            flags: json("flags", &settings.flags)?,
            ip_allow: json("ip_allow", &settings.ip_allow)?,
            metadata: json("metadata", &settings.metadata)?,
            whole: json("settings", settings)?,
        })
    }
}
