-- The store, first version. The same tables as in ../sqlite/0001_store.sql, which a test compares column by column.
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
--
-- Two roles, neither the owner of anything nor able to log in. The server takes `weir_server` on every connection (SET ROLE), so
-- its login role needs no more than membership. For what a tenant asks about itself it takes `weir_app` inside the transaction and sets
-- `weir.tenant`: then the policies below show that tenant's rows and no others. Row security is forced, so the owner sees
-- no tenant's rows either, unless it is a superuser. Names compare byte by byte (COLLATE "C"), as in SQLite.

DO $$
BEGIN
    -- Roles belong to the whole cluster: another database of it may have made them, or be just about to.
    IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = 'weir_server') THEN
        BEGIN
            CREATE ROLE weir_server NOLOGIN NOSUPERUSER NOBYPASSRLS;
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL;
        END;
    END IF;
    IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = 'weir_app') THEN
        BEGIN
            CREATE ROLE weir_app NOLOGIN NOSUPERUSER NOBYPASSRLS;
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL;
        END;
    END IF;
    BEGIN
        GRANT weir_app TO weir_server;
        GRANT weir_server TO CURRENT_USER;
        GRANT weir_app TO CURRENT_USER;
    EXCEPTION WHEN insufficient_privilege OR unique_violation THEN
        NULL;  -- Somebody else administers them; the server says at its start what is missing.
    END;
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO weir_server, weir_app', current_schema());
END
$$;

CREATE TABLE meta (
    key TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
);

CREATE TABLE counters (
    name TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    value BIGINT NOT NULL
);

INSERT INTO counters (name, value) VALUES ('audit', 0), ('delivery', 0), ('epoch', 0), ('grant', 0), ('tenant', 0);

CREATE TABLE plans (
    id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    limits TEXT NOT NULL,
    version BIGINT NOT NULL,
    created_us BIGINT NOT NULL,
    updated_us BIGINT NOT NULL
);

INSERT INTO plans (id, limits, version, created_us, updated_us) VALUES
    ('starter', '{"device_ns_per_month":36000000000000,"requests_per_minute":60,"tokens_per_minute":100000,"running_max":8,"queue_len_max":64,"connections_max":32,"users_max":5,"weight":1,"soft_limit_percent":80}', 1, 0, 0),
    ('professional', '{"device_ns_per_month":360000000000000,"requests_per_minute":600,"tokens_per_minute":1000000,"running_max":32,"queue_len_max":256,"connections_max":128,"users_max":50,"weight":4,"soft_limit_percent":80,"burst_percent":50}', 1, 0, 0),
    ('enterprise', '{"device_ns_per_month":3600000000000000,"requests_per_minute":6000,"tokens_per_minute":10000000,"running_max":64,"queue_len_max":1024,"connections_max":256,"weight":16,"soft_limit_percent":90,"burst_percent":100,"carry_over_percent":20}', 1, 0, 0);

CREATE TABLE tenants (
    id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    number BIGINT NOT NULL UNIQUE CHECK (number >= 1),
    name TEXT COLLATE "C" NOT NULL,
    domain TEXT COLLATE "C" UNIQUE,
    status TEXT NOT NULL CHECK (status IN ('pending', 'trial', 'active', 'suspended', 'deleted')),
    reason TEXT,
    plan TEXT COLLATE "C" NOT NULL REFERENCES plans (id),
    overrides TEXT NOT NULL,
    models TEXT,
    default_models TEXT NOT NULL,
    price_ppm TEXT NOT NULL,
    flags TEXT NOT NULL,
    ip_allow TEXT NOT NULL,
    retention_days BIGINT,
    retain_bodies BIGINT NOT NULL,
    metadata TEXT NOT NULL,
    version BIGINT NOT NULL,
    created_us BIGINT NOT NULL,
    updated_us BIGINT NOT NULL
);

CREATE INDEX tenants_plan ON tenants (plan);

CREATE TABLE keys (
    id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    tenant TEXT COLLATE "C" REFERENCES tenants (id),
    name TEXT COLLATE "C" NOT NULL,
    hash BYTEA NOT NULL CHECK (length(hash) = 32),
    role TEXT NOT NULL CHECK (role IN ('member', 'tenant_admin', 'operator', 'auditor')),
    scopes TEXT NOT NULL,
    models TEXT,
    expires_us BIGINT,
    created_us BIGINT NOT NULL,
    created_by TEXT NOT NULL,
    revoked_us BIGINT,
    last_used_us BIGINT,
    replaces TEXT,
    CHECK ((role IN ('operator', 'auditor')) = (tenant IS NULL))
);

CREATE INDEX keys_tenant ON keys (tenant, id);

CREATE TABLE prices (
    model TEXT COLLATE "C" NOT NULL,
    plan TEXT COLLATE "C" NOT NULL,
    device_class TEXT COLLATE "C" NOT NULL,
    from_us BIGINT NOT NULL,
    micros_per_device_hour BIGINT NOT NULL CHECK (micros_per_device_hour >= 0),
    PRIMARY KEY (model, plan, device_class, from_us)
);

CREATE TABLE windows (
    tenant TEXT COLLATE "C" NOT NULL REFERENCES tenants (id),
    unit TEXT NOT NULL CHECK (unit IN ('device_ns', 'requests')),
    period TEXT NOT NULL CHECK (period IN ('hour', 'day', 'month')),
    begins_us BIGINT NOT NULL,
    granted BIGINT NOT NULL,
    spent BIGINT NOT NULL,
    carried BIGINT NOT NULL,
    PRIMARY KEY (tenant, unit, period, begins_us),
    CHECK (spent >= 0 AND spent <= granted)
);

CREATE TABLE epochs (
    epoch BIGINT NOT NULL PRIMARY KEY,
    replica TEXT NOT NULL,
    started_us BIGINT NOT NULL,
    ended_us BIGINT,
    head BYTEA
);

CREATE TABLE grants (
    id BIGINT NOT NULL PRIMARY KEY,
    tenant TEXT COLLATE "C" NOT NULL REFERENCES tenants (id),
    unit TEXT NOT NULL CHECK (unit IN ('device_ns', 'requests')),
    replica TEXT NOT NULL,
    epoch BIGINT NOT NULL REFERENCES epochs (epoch),
    amount BIGINT NOT NULL,
    spent BIGINT NOT NULL,
    hour_us BIGINT NOT NULL,
    day_us BIGINT NOT NULL,
    month_us BIGINT NOT NULL,
    expires_us BIGINT NOT NULL,
    closed BIGINT NOT NULL CHECK (closed IN (0, 1)),
    CHECK (spent >= 0 AND spent <= amount)
);

CREATE INDEX grants_open ON grants (tenant, unit, expires_us) WHERE closed = 0;
CREATE INDEX grants_closed ON grants (expires_us) WHERE closed = 1;

CREATE TABLE ledger (
    epoch BIGINT NOT NULL REFERENCES epochs (epoch),
    seq BIGINT NOT NULL,
    at_us BIGINT NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('open', 'settle', 'checkpoint', 'recovered', 'lost', 'down', 'close')),
    tenant TEXT COLLATE "C",
    request TEXT,
    model TEXT COLLATE "C",
    key TEXT COLLATE "C",
    device_ns BIGINT NOT NULL,
    prompt_tokens BIGINT NOT NULL,
    completion_tokens BIGINT NOT NULL,
    body TEXT NOT NULL,
    hash BYTEA NOT NULL,
    PRIMARY KEY (epoch, seq)
);

CREATE UNIQUE INDEX ledger_settled ON ledger (tenant, request) WHERE kind IN ('settle', 'recovered');
CREATE INDEX ledger_at ON ledger (at_us);

CREATE TABLE usage_days (
    tenant TEXT COLLATE "C" NOT NULL,
    day BIGINT NOT NULL,
    model TEXT COLLATE "C" NOT NULL,
    key TEXT COLLATE "C" NOT NULL,
    plan TEXT COLLATE "C" NOT NULL,
    device_class TEXT COLLATE "C" NOT NULL,
    requests BIGINT NOT NULL,
    prompt_tokens BIGINT NOT NULL,
    completion_tokens BIGINT NOT NULL,
    device_ns BIGINT NOT NULL,
    PRIMARY KEY (tenant, day, model, key, plan, device_class)
);

CREATE INDEX usage_days_day ON usage_days (day);

CREATE TABLE anchors (
    day BIGINT NOT NULL,
    epoch BIGINT NOT NULL,
    seq BIGINT NOT NULL,
    at_us BIGINT NOT NULL,
    hash BYTEA NOT NULL,
    PRIMARY KEY (day, epoch)
);

CREATE TABLE months (
    month BIGINT NOT NULL PRIMARY KEY,
    closed_us BIGINT NOT NULL,
    body TEXT NOT NULL,
    hash BYTEA NOT NULL,
    signer TEXT NOT NULL,
    signature BYTEA NOT NULL,
    archived_us BIGINT
);

CREATE TABLE audit (
    seq BIGINT NOT NULL PRIMARY KEY,
    at_us BIGINT NOT NULL,
    schema BIGINT NOT NULL,
    event TEXT COLLATE "C" NOT NULL UNIQUE,
    actor_kind TEXT NOT NULL,
    actor TEXT NOT NULL,
    credential TEXT,
    tenant TEXT COLLATE "C",
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
    prev BYTEA NOT NULL,
    hash BYTEA NOT NULL
);

CREATE INDEX audit_tenant ON audit (tenant, seq);

CREATE TABLE idempotency (
    tenant TEXT COLLATE "C" NOT NULL REFERENCES tenants (id),
    key TEXT COLLATE "C" NOT NULL,
    fingerprint BYTEA NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('running', 'done')),
    request TEXT NOT NULL,
    epoch BIGINT NOT NULL,
    status BIGINT,
    usage TEXT,
    body BYTEA,
    created_us BIGINT NOT NULL,
    expires_us BIGINT NOT NULL,
    PRIMARY KEY (tenant, key)
);

CREATE INDEX idempotency_expires ON idempotency (expires_us);

CREATE TABLE webhooks (
    id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    tenant TEXT COLLATE "C" REFERENCES tenants (id),
    url TEXT NOT NULL,
    secret BYTEA NOT NULL,
    events TEXT NOT NULL,
    enabled BIGINT NOT NULL,
    version BIGINT NOT NULL,
    created_us BIGINT NOT NULL,
    updated_us BIGINT NOT NULL
);

CREATE INDEX webhooks_tenant ON webhooks (tenant, id);

CREATE TABLE deliveries (
    id BIGINT NOT NULL PRIMARY KEY,
    webhook TEXT NOT NULL REFERENCES webhooks (id) ON DELETE CASCADE,
    tenant TEXT COLLATE "C",
    event TEXT COLLATE "C" NOT NULL,
    body TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('waiting', 'delivered', 'dead')),
    attempts BIGINT NOT NULL,
    next_us BIGINT NOT NULL,
    status BIGINT,
    error TEXT,
    created_us BIGINT NOT NULL,
    updated_us BIGINT NOT NULL
);

CREATE INDEX deliveries_due ON deliveries (next_us) WHERE state = 'waiting';

-- What each role may do. The audit log and the ledger are only ever added to; archiving a closed month is the owner's.

GRANT SELECT ON _sqlx_migrations TO weir_server;
GRANT SELECT, INSERT, UPDATE ON meta, counters, tenants, keys, windows, epochs, months TO weir_server;
GRANT SELECT, INSERT, UPDATE, DELETE ON grants, plans, prices, usage_days, idempotency, webhooks, deliveries TO weir_server;
GRANT SELECT, INSERT ON ledger, anchors, audit TO weir_server;

GRANT SELECT ON plans, prices, tenants, windows, grants, ledger, usage_days, deliveries TO weir_app;
-- What was done to it, and not by whom, from where and with what.
GRANT SELECT (seq, at_us, event, tenant, action, target_kind, target, result, reason) ON audit TO weir_app;
-- Not the hashes and secrets.
GRANT SELECT (id, tenant, name, role, scopes, models, expires_us, created_us, created_by, revoked_us, last_used_us, replaces)
    ON keys TO weir_app;
GRANT SELECT (id, tenant, url, events, enabled, version, created_us, updated_us) ON webhooks TO weir_app;
GRANT SELECT (tenant, key, state, request, status, created_us, expires_us) ON idempotency TO weir_app;

ALTER TABLE tenants ENABLE ROW LEVEL SECURITY;
ALTER TABLE tenants FORCE ROW LEVEL SECURITY;
CREATE POLICY server ON tenants TO weir_server USING (true) WITH CHECK (true);
CREATE POLICY own ON tenants FOR SELECT TO weir_app USING (id = current_setting('weir.tenant', true));

ALTER TABLE keys ENABLE ROW LEVEL SECURITY;
ALTER TABLE keys FORCE ROW LEVEL SECURITY;
CREATE POLICY server ON keys TO weir_server USING (true) WITH CHECK (true);
CREATE POLICY own ON keys FOR SELECT TO weir_app USING (tenant = current_setting('weir.tenant', true));

-- Others' plans are others' business; its own is what its row of `tenants` names, which the policy above shows it.
ALTER TABLE plans ENABLE ROW LEVEL SECURITY;
ALTER TABLE plans FORCE ROW LEVEL SECURITY;
CREATE POLICY server ON plans TO weir_server USING (true) WITH CHECK (true);
CREATE POLICY own ON plans FOR SELECT TO weir_app USING (id IN (SELECT plan FROM tenants));

ALTER TABLE prices ENABLE ROW LEVEL SECURITY;
ALTER TABLE prices FORCE ROW LEVEL SECURITY;
CREATE POLICY server ON prices TO weir_server USING (true) WITH CHECK (true);
CREATE POLICY own ON prices FOR SELECT TO weir_app USING (plan = '*' OR plan IN (SELECT plan FROM tenants));

ALTER TABLE windows ENABLE ROW LEVEL SECURITY;
ALTER TABLE windows FORCE ROW LEVEL SECURITY;
CREATE POLICY server ON windows TO weir_server USING (true) WITH CHECK (true);
CREATE POLICY own ON windows FOR SELECT TO weir_app USING (tenant = current_setting('weir.tenant', true));

ALTER TABLE grants ENABLE ROW LEVEL SECURITY;
ALTER TABLE grants FORCE ROW LEVEL SECURITY;
CREATE POLICY server ON grants TO weir_server USING (true) WITH CHECK (true);
CREATE POLICY own ON grants FOR SELECT TO weir_app USING (tenant = current_setting('weir.tenant', true));

ALTER TABLE ledger ENABLE ROW LEVEL SECURITY;
ALTER TABLE ledger FORCE ROW LEVEL SECURITY;
CREATE POLICY server ON ledger TO weir_server USING (true) WITH CHECK (true);
CREATE POLICY own ON ledger FOR SELECT TO weir_app USING (tenant = current_setting('weir.tenant', true));

ALTER TABLE usage_days ENABLE ROW LEVEL SECURITY;
ALTER TABLE usage_days FORCE ROW LEVEL SECURITY;
CREATE POLICY server ON usage_days TO weir_server USING (true) WITH CHECK (true);
CREATE POLICY own ON usage_days FOR SELECT TO weir_app USING (tenant = current_setting('weir.tenant', true));

ALTER TABLE audit ENABLE ROW LEVEL SECURITY;
ALTER TABLE audit FORCE ROW LEVEL SECURITY;
CREATE POLICY server ON audit TO weir_server USING (true) WITH CHECK (true);
CREATE POLICY own ON audit FOR SELECT TO weir_app USING (tenant = current_setting('weir.tenant', true));

ALTER TABLE idempotency ENABLE ROW LEVEL SECURITY;
ALTER TABLE idempotency FORCE ROW LEVEL SECURITY;
CREATE POLICY server ON idempotency TO weir_server USING (true) WITH CHECK (true);
CREATE POLICY own ON idempotency FOR SELECT TO weir_app USING (tenant = current_setting('weir.tenant', true));

ALTER TABLE webhooks ENABLE ROW LEVEL SECURITY;
ALTER TABLE webhooks FORCE ROW LEVEL SECURITY;
CREATE POLICY server ON webhooks TO weir_server USING (true) WITH CHECK (true);
CREATE POLICY own ON webhooks FOR SELECT TO weir_app USING (tenant = current_setting('weir.tenant', true));

ALTER TABLE deliveries ENABLE ROW LEVEL SECURITY;
ALTER TABLE deliveries FORCE ROW LEVEL SECURITY;
CREATE POLICY server ON deliveries TO weir_server USING (true) WITH CHECK (true);
CREATE POLICY own ON deliveries FOR SELECT TO weir_app USING (tenant = current_setting('weir.tenant', true));
