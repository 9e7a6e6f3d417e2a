-- Months are closed and archived, and the heads of chains are noted.
--
-- * anchors, anew (nothing was ever written to it): numbered, so that an epoch's end can be noted on any day. The row of epoch 0
--   holds the anchor's own hash, over the anchor before and its heads, and says in `seq` how many heads it has.
-- * months.month is 202611 for 2026-11. A statement is never changed; once, it is marked as archived, the oldest first.
-- * archived: up to which row each chain may be removed. It is filled from the statement when that is marked, by the
--   trigger below and by nothing else: the server's role may read it only, and may remove what it covers and no other row.

DROP TABLE anchors;

CREATE TABLE anchors (
    number BIGINT NOT NULL,
    epoch BIGINT NOT NULL,
    seq BIGINT NOT NULL,
    at_us BIGINT NOT NULL,
    hash BYTEA NOT NULL,
    PRIMARY KEY (number, epoch)
);

CREATE INDEX anchors_epoch ON anchors (epoch, seq);

INSERT INTO counters (name, value) VALUES ('anchor', 0);

CREATE TABLE archived (
    epoch BIGINT NOT NULL PRIMARY KEY,
    seq BIGINT NOT NULL
);

GRANT SELECT, INSERT ON anchors TO weir_server;
GRANT SELECT ON archived TO weir_server;
GRANT DELETE ON ledger TO weir_server;
REVOKE UPDATE ON months FROM weir_server;
GRANT UPDATE (archived_us) ON months TO weir_server;

CREATE FUNCTION weir_ledger_remains() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM archived WHERE epoch = OLD.epoch AND seq >= OLD.seq) THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION 'the ledger is never shortened' USING ERRCODE = 'insufficient_privilege';
END
$$;

CREATE TRIGGER ledger_remains BEFORE DELETE ON ledger FOR EACH ROW EXECUTE FUNCTION weir_ledger_remains();

CREATE FUNCTION weir_months_stay() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        IF NEW.archived_us IS NULL THEN
            RETURN NEW;
        END IF;
        RAISE EXCEPTION 'a month is closed before it is archived' USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF TG_OP = 'DELETE' THEN
        RAISE EXCEPTION 'a month''s statement is never removed' USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF OLD.archived_us IS NULL AND NEW.archived_us IS NOT NULL AND (NEW.month, NEW.closed_us, NEW.body, NEW.hash, NEW.signer,
        NEW.signature) = (OLD.month, OLD.closed_us, OLD.body, OLD.hash, OLD.signer, OLD.signature)
        AND NOT EXISTS (SELECT 1 FROM months WHERE month < OLD.month AND archived_us IS NULL) THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'a month''s statement is never changed' USING ERRCODE = 'insufficient_privilege';
END
$$;

CREATE TRIGGER months_stay BEFORE INSERT OR UPDATE OR DELETE ON months FOR EACH ROW EXECUTE FUNCTION weir_months_stay();

-- It writes what the server's role may only read, so it runs with the owner's rights, and looks at the store's own tables
-- and no others of the same name.
DO $do$
BEGIN
    EXECUTE format($make$
        CREATE FUNCTION weir_months_archived() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = %I, pg_temp AS $$
        BEGIN
            -- Epochs below this one have ended within the statement, with all of their rows.
            INSERT INTO archived AS a (epoch, seq)
                SELECT e.epoch, 9223372036854775807 FROM epochs e WHERE e.epoch < (NEW.body::json ->> 'closed_below')::bigint
                ON CONFLICT (epoch) DO UPDATE SET seq = greatest(a.seq, excluded.seq);
            INSERT INTO archived AS a (epoch, seq)
                SELECT (c ->> 'epoch')::bigint, (c ->> 'seq')::bigint FROM json_array_elements(NEW.body::json -> 'chains') c
                ON CONFLICT (epoch) DO UPDATE SET seq = greatest(a.seq, excluded.seq);
            RETURN NULL;
        END
        $$
    $make$, current_schema());
END
$do$;

CREATE TRIGGER months_archived AFTER UPDATE OF archived_us ON months FOR EACH ROW EXECUTE FUNCTION weir_months_archived();
