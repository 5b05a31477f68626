CHECKPOINT;
UPDATE t SET v = v || 'c' WHERE id < 60;
