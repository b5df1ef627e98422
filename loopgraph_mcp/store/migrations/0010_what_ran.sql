-- What an outcome belongs to: all that its run could see, its context in full, and who reported it.

CREATE TABLE inputs (
    hash  TEXT PRIMARY KEY,                              -- of all that a run could see besides the editable file
    files TEXT NOT NULL CHECK (json_valid(files))        -- path -> content id
) STRICT;

ALTER TABLE experiment ADD COLUMN inputs_hash TEXT;                      -- of `inputs`; NULL: not run here, or before this column
ALTER TABLE experiment ADD COLUMN run_key TEXT NOT NULL DEFAULT '';   -- equal: all that the run could see is equal
ALTER TABLE experiment ADD COLUMN group_key TEXT NOT NULL DEFAULT ''; -- equal: that, up to the values of seeds
ALTER TABLE experiment ADD COLUMN base_group_key TEXT;                -- the same of what it is compared with

-- Rows from before: by the program alone, or by their own id where that is not known.
UPDATE experiment SET run_key = coalesce((SELECT tree_hash FROM program WHERE hash = program_hash), id);
UPDATE experiment SET
    group_key = run_key,
    base_group_key = CASE
        WHEN program_hash IS NOT NULL AND device_slot <> 'imported'
        THEN (SELECT tree_hash FROM program WHERE hash = base_hash)
        ELSE (SELECT parent.run_key FROM experiment AS parent WHERE parent.id = experiment.parent_id)
    END;

CREATE INDEX experiment_run ON experiment (context_id, run_key);
CREATE INDEX experiment_group ON experiment (context_id, group_key);

-- Empty where a row is from before these columns; then it equals no context of today.
ALTER TABLE context ADD COLUMN editable TEXT NOT NULL DEFAULT '';
ALTER TABLE context ADD COLUMN command TEXT NOT NULL DEFAULT '';     -- JSON
ALTER TABLE context ADD COLUMN reading TEXT NOT NULL DEFAULT '';     -- how the metric is found in the log
ALTER TABLE context ADD COLUMN environment TEXT NOT NULL DEFAULT ''; -- JSON: the declared variables' values

ALTER TABLE outcome ADD COLUMN origin TEXT NOT NULL DEFAULT 'measured'
    CHECK (origin IN ('measured', 'logged', 'trusted', 'reported', 'imported'));
DROP TRIGGER outcome_append_only;
UPDATE outcome SET origin = 'imported'
WHERE experiment_id IN (SELECT id FROM experiment WHERE device_slot = 'imported');
-- What ran here has its program; a report had none.
UPDATE outcome SET origin = 'reported'
WHERE experiment_id IN (SELECT id FROM experiment WHERE device_slot <> 'imported' AND program_hash IS NULL);
CREATE TRIGGER outcome_append_only BEFORE UPDATE ON outcome BEGIN SELECT RAISE(ABORT, 'append-only'); END;
