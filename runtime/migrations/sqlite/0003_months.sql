-- Months are closed and archived, and the heads of chains are noted.
--
-- * anchors, anew (nothing was ever written to it): numbered, so that an epoch's end can be noted on any day. The row of epoch 0
--   holds the anchor's own hash, over the anchor before and its heads, and says in `seq` how many heads it has.
-- * months.month is 202611 for 2026-11. A statement is never changed; once, it is marked as archived, the oldest first.
-- * archived: up to which row each chain may be removed. It is filled from the statement when that is marked, by the
--   trigger below and by nothing else.

DROP TABLE anchors;

CREATE TABLE anchors (
    number INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    at_us INTEGER NOT NULL,
    hash BLOB NOT NULL,
    PRIMARY KEY (number, epoch)
) STRICT, WITHOUT ROWID;

CREATE INDEX anchors_epoch ON anchors (epoch, seq);

INSERT INTO counters (name, value) VALUES ('anchor', 0);

CREATE TRIGGER anchors_stay BEFORE UPDATE ON anchors BEGIN
    SELECT RAISE(ABORT, 'anchors are never changed');
END;

CREATE TRIGGER anchors_remain BEFORE DELETE ON anchors BEGIN
    SELECT RAISE(ABORT, 'anchors are never removed');
END;

CREATE TABLE archived (
    epoch INTEGER NOT NULL PRIMARY KEY,
    seq INTEGER NOT NULL
) STRICT;

DROP TRIGGER ledger_remains;

CREATE TRIGGER ledger_remains BEFORE DELETE ON ledger
WHEN NOT EXISTS (SELECT 1 FROM archived WHERE epoch = OLD.epoch AND seq >= OLD.seq) BEGIN
    SELECT RAISE(ABORT, 'the ledger is never shortened');
END;

CREATE TRIGGER months_begin BEFORE INSERT ON months WHEN NEW.archived_us IS NOT NULL BEGIN
    SELECT RAISE(ABORT, 'a month is closed before it is archived');
END;

CREATE TRIGGER months_stay BEFORE UPDATE ON months
WHEN OLD.archived_us IS NOT NULL OR NEW.archived_us IS NULL OR NEW.month <> OLD.month OR NEW.closed_us <> OLD.closed_us
    OR NEW.body <> OLD.body OR NEW.hash <> OLD.hash OR NEW.signer <> OLD.signer OR NEW.signature <> OLD.signature
    OR EXISTS (SELECT 1 FROM months WHERE month < OLD.month AND archived_us IS NULL) BEGIN
    SELECT RAISE(ABORT, 'a month''s statement is never changed');
END;

CREATE TRIGGER months_remain BEFORE DELETE ON months BEGIN
    SELECT RAISE(ABORT, 'a month''s statement is never removed');
END;

CREATE TRIGGER months_archived AFTER UPDATE OF archived_us ON months BEGIN
    -- Epochs below this one have ended within the statement, with all of their rows.
    INSERT INTO archived (epoch, seq) SELECT epoch, 9223372036854775807 FROM epochs WHERE epoch < (NEW.body ->> '$.closed_below')
        ON CONFLICT (epoch) DO UPDATE SET seq = max(archived.seq, excluded.seq);
    INSERT INTO archived (epoch, seq) SELECT value ->> '$.epoch', value ->> '$.seq' FROM json_each(NEW.body, '$.chains') WHERE true
        ON CONFLICT (epoch) DO UPDATE SET seq = max(archived.seq, excluded.seq);
END;
