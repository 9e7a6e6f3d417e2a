-- Bills of months that are over, as they were made: prices and multipliers may change later, and a bill may not.

CREATE TABLE invoices (
    tenant TEXT NOT NULL,
    -- When the month begins.
    month_us INTEGER NOT NULL,
    made_us INTEGER NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (tenant, month_us)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER invoices_stay BEFORE UPDATE ON invoices BEGIN
    SELECT RAISE(ABORT, 'a bill is never changed');
END;

CREATE TRIGGER invoices_remain BEFORE DELETE ON invoices BEGIN
    SELECT RAISE(ABORT, 'a bill is never removed');
END;
