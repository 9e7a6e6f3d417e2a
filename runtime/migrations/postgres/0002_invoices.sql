-- Bills of months that are over, as they were made: prices and multipliers may change later, and a bill may not.

CREATE TABLE invoices (
    tenant TEXT COLLATE "C" NOT NULL,
    -- When the month begins.
    month_us BIGINT NOT NULL,
    made_us BIGINT NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (tenant, month_us)
);

-- They can be added and never changed.
GRANT SELECT, INSERT ON invoices TO weir_server;
GRANT SELECT ON invoices TO weir_app;

ALTER TABLE invoices ENABLE ROW LEVEL SECURITY;
ALTER TABLE invoices FORCE ROW LEVEL SECURITY;
CREATE POLICY server ON invoices TO weir_server USING (true) WITH CHECK (true);
CREATE POLICY own ON invoices FOR SELECT TO weir_app USING (tenant = current_setting('weir.tenant', true));
