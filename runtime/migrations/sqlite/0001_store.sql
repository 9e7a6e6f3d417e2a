-- The store, first version. The same tables as in ../postgres/0001_store.sql, which a test compares column by column.
--
-- Units: *_us is microseconds since 1970 UTC; *_ns is nanoseconds of device time; money is millionths of the currency;
-- *_ppm is millionths of one. JSON is text, because hashes are taken over it. Flags are 0 or 1.
--
-- What is here beyond the plain sense of the words:
-- * counters: one row per number that grows by one in the order of commits (the row is locked until then, which a
--   sequence does not do). `audit` numbers the audit log, and replicas poll it to learn what changed; `tenant` makes
--   tenants.number dense; `grant` and `epoch` and `delivery` number their tables.
-- * windows.carried: what the window before left over, where the plan lets it, or below zero what it used too much; the
--   limit is the plan's plus this.
-- * grants.epoch: whose life of a replica took it; a grant of an ended epoch can be closed at once.
-- * usage_days has the class of the device and the plan of the day, because prices depend on both and plans change.
-- * ledger.tenant is null for the operator. It has no foreign key: tenants are never deleted, and the ledger outlives all.
-- * idempotency.epoch: a running request of an ended epoch is not running any more.

CREATE TABLE meta (
    key TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE counters (
    name TEXT NOT NULL PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

INSERT INTO counters (name, value) VALUES ('audit', 0), ('delivery', 0), ('epoch', 0), ('grant', 0), ('tenant', 0);

CREATE TABLE plans (
    id TEXT NOT NULL PRIMARY KEY,
    limits TEXT NOT NULL,
    version INTEGER NOT NULL,
    created_us INTEGER NOT NULL,
    updated_us INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

INSERT INTO plans (id, limits, version, created_us, updated_us) VALUES
    ('starter', '{"device_ns_per_month":36000000000000,"requests_per_minute":60,"tokens_per_minute":100000,"running_max":8,"queue_len_max":64,"connections_max":32,"users_max":5,"weight":1,"soft_limit_percent":80}', 1, 0, 0),
    ('professional', '{"device_ns_per_month":360000000000000,"requests_per_minute":600,"tokens_per_minute":1000000,"running_max":32,"queue_len_max":256,"connections_max":128,"users_max":50,"weight":4,"soft_limit_percent":80,"burst_percent":50}', 1, 0, 0),
    ('enterprise', '{"device_ns_per_month":3600000000000000,"requests_per_minute":6000,"tokens_per_minute":10000000,"running_max":64,"queue_len_max":1024,"connections_max":256,"weight":16,"soft_limit_percent":90,"burst_percent":100,"carry_over_percent":20}', 1, 0, 0);

CREATE TABLE tenants (
    id TEXT NOT NULL PRIMARY KEY,
    number INTEGER NOT NULL UNIQUE CHECK (number >= 1),
    name TEXT NOT NULL,
    domain TEXT UNIQUE,
    status TEXT NOT NULL CHECK (status IN ('pending', 'trial', 'active', 'suspended', 'deleted')),
    reason TEXT,
    plan TEXT NOT NULL REFERENCES plans (id),
    overrides TEXT NOT NULL,
    models TEXT,
    default_models TEXT NOT NULL,
    price_ppm TEXT NOT NULL,
    flags TEXT NOT NULL,
    ip_allow TEXT NOT NULL,
    retention_days INTEGER,
    retain_bodies INTEGER NOT NULL,
    metadata TEXT NOT NULL,
    version INTEGER NOT NULL,
    created_us INTEGER NOT NULL,
    updated_us INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX tenants_plan ON tenants (plan);

CREATE TABLE keys (
    id TEXT NOT NULL PRIMARY KEY,
    tenant TEXT REFERENCES tenants (id),
    name TEXT NOT NULL,
    hash BLOB NOT NULL CHECK (length(hash) = 32),
    role TEXT NOT NULL CHECK (role IN ('member', 'tenant_admin', 'operator', 'auditor')),
    scopes TEXT NOT NULL,
    models TEXT,
    expires_us INTEGER,
    created_us INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    revoked_us INTEGER,
    last_used_us INTEGER,
    replaces TEXT,
    CHECK ((role IN ('operator', 'auditor')) = (tenant IS NULL))
) STRICT, WITHOUT ROWID;

CREATE INDEX keys_tenant ON keys (tenant, id);

CREATE TABLE prices (
    model TEXT NOT NULL,
    plan TEXT NOT NULL,
    device_class TEXT NOT NULL,
    from_us INTEGER NOT NULL,
    micros_per_device_hour INTEGER NOT NULL CHECK (micros_per_device_hour >= 0),
    PRIMARY KEY (model, plan, device_class, from_us)
) STRICT, WITHOUT ROWID;

CREATE TABLE windows (
    tenant TEXT NOT NULL REFERENCES tenants (id),
    unit TEXT NOT NULL CHECK (unit IN ('device_ns', 'requests')),
    period TEXT NOT NULL CHECK (period IN ('hour', 'day', 'month')),
    begins_us INTEGER NOT NULL,
    granted INTEGER NOT NULL,
    spent INTEGER NOT NULL,
    carried INTEGER NOT NULL,
    PRIMARY KEY (tenant, unit, period, begins_us),
    CHECK (spent >= 0 AND spent <= granted)
) STRICT, WITHOUT ROWID;

CREATE TABLE epochs (
    epoch INTEGER NOT NULL PRIMARY KEY,
    replica TEXT NOT NULL,
    started_us INTEGER NOT NULL,
    ended_us INTEGER,
    head BLOB
) STRICT;

CREATE TABLE grants (
    id INTEGER NOT NULL PRIMARY KEY,
    tenant TEXT NOT NULL REFERENCES tenants (id),
    unit TEXT NOT NULL CHECK (unit IN ('device_ns', 'requests')),
    replica TEXT NOT NULL,
    epoch INTEGER NOT NULL REFERENCES epochs (epoch),
    amount INTEGER NOT NULL,
    spent INTEGER NOT NULL,
    hour_us INTEGER NOT NULL,
    day_us INTEGER NOT NULL,
    month_us INTEGER NOT NULL,
    expires_us INTEGER NOT NULL,
    closed INTEGER NOT NULL CHECK (closed IN (0, 1)),
    CHECK (spent >= 0 AND spent <= amount)
) STRICT;

CREATE INDEX grants_open ON grants (tenant, unit, expires_us) WHERE closed = 0;
CREATE INDEX grants_closed ON grants (expires_us) WHERE closed = 1;

CREATE TABLE ledger (
    epoch INTEGER NOT NULL REFERENCES epochs (epoch),
    seq INTEGER NOT NULL,
    at_us INTEGER NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('open', 'settle', 'checkpoint', 'recovered', 'lost', 'down', 'close')),
    tenant TEXT,
    request TEXT,
    model TEXT,
    key TEXT,
    device_ns INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    body TEXT NOT NULL,
    hash BLOB NOT NULL,
    PRIMARY KEY (epoch, seq)
) STRICT, WITHOUT ROWID;

CREATE UNIQUE INDEX ledger_settled ON ledger (tenant, request) WHERE kind IN ('settle', 'recovered');
CREATE INDEX ledger_at ON ledger (at_us);

CREATE TABLE usage_days (
    tenant TEXT NOT NULL,
    day INTEGER NOT NULL,
    model TEXT NOT NULL,
    key TEXT NOT NULL,
    plan TEXT NOT NULL,
    device_class TEXT NOT NULL,
    requests INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    device_ns INTEGER NOT NULL,
    PRIMARY KEY (tenant, day, model, key, plan, device_class)
) STRICT, WITHOUT ROWID;

CREATE INDEX usage_days_day ON usage_days (day);

CREATE TABLE anchors (
    day INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    at_us INTEGER NOT NULL,
    hash BLOB NOT NULL,
    PRIMARY KEY (day, epoch)
) STRICT, WITHOUT ROWID;

CREATE TABLE months (
    month INTEGER NOT NULL PRIMARY KEY,
    closed_us INTEGER NOT NULL,
    body TEXT NOT NULL,
    hash BLOB NOT NULL,
    signer TEXT NOT NULL,
    signature BLOB NOT NULL,
    archived_us INTEGER
) STRICT;

CREATE TABLE audit (
    seq INTEGER NOT NULL PRIMARY KEY,
    at_us INTEGER NOT NULL,
    schema INTEGER NOT NULL,
    event TEXT NOT NULL UNIQUE,
    actor_kind TEXT NOT NULL,
    actor TEXT NOT NULL,
    credential TEXT,
    tenant TEXT,
    method TEXT,
    issuer TEXT,
    source TEXT,
    proxies TEXT,
    agent TEXT,
    request TEXT,
    trace TEXT,
    action TEXT NOT NULL,
    target_kind TEXT NOT NULL,
    target TEXT NOT NULL,
    before TEXT,
    after TEXT,
    result TEXT NOT NULL,
    reason TEXT,
    approval TEXT,
    node TEXT NOT NULL,
    build TEXT NOT NULL,
    config TEXT NOT NULL,
    prev BLOB NOT NULL,
    hash BLOB NOT NULL
) STRICT;

CREATE INDEX audit_tenant ON audit (tenant, seq);

CREATE TRIGGER audit_stays BEFORE UPDATE ON audit BEGIN
    SELECT RAISE(ABORT, 'the audit log is never changed');
END;

CREATE TRIGGER audit_remains BEFORE DELETE ON audit BEGIN
    SELECT RAISE(ABORT, 'the audit log is never shortened');
END;

CREATE TRIGGER ledger_stays BEFORE UPDATE ON ledger BEGIN
    SELECT RAISE(ABORT, 'the ledger is never changed');
END;

CREATE TRIGGER ledger_remains BEFORE DELETE ON ledger BEGIN
    SELECT RAISE(ABORT, 'the ledger is never shortened');
END;

CREATE TRIGGER anchors_stay BEFORE UPDATE ON anchors BEGIN
    SELECT RAISE(ABORT, 'anchors are never changed');
END;

CREATE TRIGGER anchors_remain BEFORE DELETE ON anchors BEGIN
    SELECT RAISE(ABORT, 'anchors are never removed');
END;

CREATE TABLE idempotency (
    tenant TEXT NOT NULL REFERENCES tenants (id),
    key TEXT NOT NULL,
    fingerprint BLOB NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('running', 'done')),
    request TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    status INTEGER,
    usage TEXT,
    body BLOB,
    created_us INTEGER NOT NULL,
    expires_us INTEGER NOT NULL,
    PRIMARY KEY (tenant, key)
) STRICT, WITHOUT ROWID;

CREATE INDEX idempotency_expires ON idempotency (expires_us);

CREATE TABLE webhooks (
    id TEXT NOT NULL PRIMARY KEY,
    tenant TEXT REFERENCES tenants (id),
    url TEXT NOT NULL,
    secret BLOB NOT NULL,
    events TEXT NOT NULL,
    enabled INTEGER NOT NULL,
    version INTEGER NOT NULL,
    created_us INTEGER NOT NULL,
    updated_us INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX webhooks_tenant ON webhooks (tenant, id);

CREATE TABLE deliveries (
    id INTEGER NOT NULL PRIMARY KEY,
    webhook TEXT NOT NULL REFERENCES webhooks (id) ON DELETE CASCADE,
    tenant TEXT,
    event TEXT NOT NULL,
    body TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('waiting', 'delivered', 'dead')),
    attempts INTEGER NOT NULL,
    next_us INTEGER NOT NULL,
    status INTEGER,
    error TEXT,
    created_us INTEGER NOT NULL,
    updated_us INTEGER NOT NULL
) STRICT;

CREATE INDEX deliveries_due ON deliveries (next_us) WHERE state = 'waiting';
