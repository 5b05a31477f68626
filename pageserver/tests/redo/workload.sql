-- One statement per line, without a semicolon. Makes every kind of record that changes a relation page, most of them with and without
-- initialising the page: runs under wal_consistency_checking = all, so that each record brings the page as it must become.

-- Sequences.
CREATE SEQUENCE numbers
SELECT count(nextval('numbers')) FROM generate_series(1, 200)
SELECT setval('numbers', 9000)
ALTER SEQUENCE numbers INCREMENT 7
SELECT count(nextval('numbers')) FROM generate_series(1, 80)

-- Heap: insert, update in place of HOT and not, delete, lock, abort; B-tree beside it.
CREATE TABLE account (id int, branch int, note text, changed timestamptz DEFAULT now())
CREATE UNIQUE INDEX account_id ON account (id)
CREATE INDEX account_branch ON account (branch)
CREATE INDEX account_note ON account (note)
INSERT INTO account SELECT i, i % 40, repeat(chr(97 + i % 26), 1 + i % 40) FROM generate_series(1, 3000) i
UPDATE account SET branch = branch + 1 WHERE id % 6 = 0
UPDATE account SET changed = now() WHERE id % 13 = 0
DELETE FROM account WHERE id % 4 = 0
BEGIN
SELECT count(*) FROM (SELECT 1 FROM account WHERE id % 7 = 1 FOR UPDATE) locked
SELECT count(*) FROM (SELECT 1 FROM account WHERE id % 7 = 2 FOR SHARE) locked
COMMIT
VACUUM (FREEZE) account
INSERT INTO account SELECT i, i % 40, md5(i::text) FROM generate_series(3001, 4000) i
UPDATE account SET note = md5(note) WHERE id BETWEEN 100 AND 500
VACUUM account
-- After this vacuum pages are all-visible: what follows clears bits of the visibility map.
BEGIN
SELECT count(*) FROM (SELECT 1 FROM account WHERE id BETWEEN 1 AND 60 FOR NO KEY UPDATE) locked
SAVEPOINT inner_one
INSERT INTO account SELECT i, 1, 'aborted' FROM generate_series(5001, 5100) i
UPDATE account SET branch = 99 WHERE id BETWEEN 600 AND 650
ROLLBACK TO inner_one
UPDATE account SET changed = now() WHERE id BETWEEN 200 AND 260
ROLLBACK
-- Two lockers of one tuple: multixacts.
BEGIN
SELECT count(*) FROM (SELECT 1 FROM account WHERE id BETWEEN 301 AND 360 FOR KEY SHARE) locked
SAVEPOINT upgrade
UPDATE account SET changed = now() WHERE id BETWEEN 301 AND 360
COMMIT
VACUUM (FREEZE) account
DELETE FROM account WHERE id > 2000
VACUUM account
INSERT INTO account SELECT i, 5, 'the same' FROM generate_series(10001, 11500) i
VACUUM (INDEX_CLEANUP ON) account
DELETE FROM account WHERE id > 400
VACUUM account
INSERT INTO account SELECT i, i, 'again' FROM generate_series(20001, 21000) i

-- Heap once more: locks that follow a chain of updates, rows that move to another partition, an insertion that is taken back.
CREATE TABLE chained (k int PRIMARY KEY, v int, t text)
INSERT INTO chained SELECT i, 0, repeat('c', i) FROM generate_series(1, 100) i
VACUUM (FREEZE) chained
BEGIN
UPDATE chained SET v = 1 WHERE k <= 60
UPDATE chained SET v = 2 WHERE k <= 30
UPDATE chained SET t = repeat('d', 900) WHERE k <= 20
PREPARE TRANSACTION 'updater'
BEGIN
SELECT count(*) FROM (SELECT 1 FROM chained FOR KEY SHARE) locked
COMMIT
BEGIN
SELECT count(*) FROM (SELECT 1 FROM chained FOR KEY SHARE) locked
PREPARE TRANSACTION 'locker'
SELECT count(*) FROM (SELECT 1 FROM chained FOR KEY SHARE) locked
COMMIT PREPARED 'updater'
UPDATE chained SET v = v + 1 WHERE k > 70
SELECT count(*) FROM (SELECT 1 FROM chained FOR SHARE) locked
COMMIT PREPARED 'locker'
DELETE FROM chained WHERE k % 2 = 0
VACUUM (FREEZE) chained
CREATE TABLE parted (k int, t text) PARTITION BY LIST (k)
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES IN (1)
CREATE TABLE parted_2 PARTITION OF parted FOR VALUES IN (2)
INSERT INTO parted SELECT 1, repeat('p', i) FROM generate_series(1, 60) i
VACUUM parted
UPDATE parted SET k = 2 WHERE length(t) % 3 = 0
CREATE SEQUENCE flips
CREATE FUNCTION flip(a int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN RETURN CASE WHEN nextval('flips') % 5 = 2 THEN 0 ELSE a END; END $$
CREATE TABLE flipped (a int, t text)
CREATE UNIQUE INDEX flipped_a ON flipped (flip(a))
INSERT INTO flipped VALUES (0, 'first')
INSERT INTO flipped SELECT i, repeat('f', i) FROM generate_series(1, 60) i ON CONFLICT DO NOTHING

-- B-tree: splits in the middle, dedup, page deletion, new fast root, three levels.
CREATE TABLE scattered (k int)
CREATE INDEX scattered_k ON scattered (k)
INSERT INTO scattered SELECT (i * 7919) % 9000 FROM generate_series(1, 4000) i
DELETE FROM scattered WHERE k BETWEEN 1000 AND 7000
VACUUM scattered
INSERT INTO scattered SELECT i FROM generate_series(1000, 2500) i
CREATE TABLE deep (t text)
CREATE INDEX deep_t ON deep (t)
INSERT INTO deep SELECT repeat(md5(i::text), 30) || i FROM generate_series(1, 500) i
DELETE FROM deep WHERE ctid < '(8,1)'
VACUUM deep
INSERT INTO deep SELECT md5((i * 3)::text) || repeat(md5(i::text), 25) FROM generate_series(1, 200) i
CREATE TABLE emptied (a int)
CREATE INDEX emptied_a ON emptied (a)
INSERT INTO emptied SELECT i FROM generate_series(1, 2500) i
DELETE FROM emptied
VACUUM emptied
VACUUM emptied
INSERT INTO emptied SELECT i FROM generate_series(1, 2500) i
DELETE FROM emptied WHERE a < 2490
VACUUM emptied
INSERT INTO emptied SELECT i FROM generate_series(2500, 4500) i

-- B-tree with wide keys: splits and page deletion at every level of a tall tree, a new fast root while a leaf is still half dead.
CREATE TABLE tall (t text)
ALTER TABLE tall ALTER t SET STORAGE EXTERNAL
CREATE INDEX tall_t ON tall (t)
INSERT INTO tall SELECT md5(i::text) || (SELECT string_agg(md5((i * 61 + j)::text), '') FROM generate_series(1, 60) j) FROM generate_series(1, 120) i
DELETE FROM tall WHERE t BETWEEN '2' AND 'd'
VACUUM tall
INSERT INTO tall SELECT lpad((1000 - i)::text, 8, '1') || (SELECT string_agg(md5((i * 71 + j)::text), '') FROM generate_series(1, 60) j) FROM generate_series(1, 60) i
DELETE FROM tall WHERE t < 'f'
VACUUM tall
INSERT INTO tall SELECT md5(i::text) || (SELECT string_agg(md5((i * 73 + j)::text), '') FROM generate_series(1, 60) j) FROM generate_series(1, 40) i
-- B-tree with few keys: posting lists that take a row in, on page splits too, and that lose rows to vacuum and to insertions.
CREATE TABLE recurring (k int, v int)
CREATE INDEX recurring_k ON recurring (k)
CREATE INDEX recurring_v ON recurring (v)
INSERT INTO recurring SELECT i % 5, i FROM generate_series(1, 1500) i
DELETE FROM recurring WHERE v % 3 = 0
VACUUM recurring
INSERT INTO recurring SELECT i % 5, i FROM generate_series(1, 500) i
DO $$ BEGIN FOR round IN 1..5 LOOP UPDATE recurring SET v = v + 1 WHERE k = 1; COMMIT; END LOOP; END $$
CREATE TABLE holed (i int)
COPY holed FROM PROGRAM 'seq 1 2400'
DELETE FROM holed WHERE i BETWEEN 550 AND 660 AND i % 2 = 0
VACUUM holed
CREATE INDEX holed_same ON holed ((0 * i)) WITH (fillfactor = 100)
CREATE INDEX holed_four ON holed ((i % 4)) WITH (fillfactor = 100)
ALTER INDEX holed_same SET (deduplicate_items = off)
ALTER INDEX holed_four SET (deduplicate_items = off)
INSERT INTO holed SELECT i FROM generate_series(1, 54) i

-- TOAST, speculative insertion.
CREATE TABLE document (id int PRIMARY KEY, body text)
ALTER TABLE document ALTER body SET STORAGE EXTERNAL
INSERT INTO document SELECT i, repeat(md5(i::text), 400) FROM generate_series(1, 30) i
UPDATE document SET body = repeat(md5(body), 300) WHERE id % 2 = 0
DELETE FROM document WHERE id % 3 = 0
VACUUM document
INSERT INTO document VALUES (1, 'conflict'), (2, 'conflict') ON CONFLICT (id) DO UPDATE SET body = 'resolved'
INSERT INTO document VALUES (1, 'conflict') ON CONFLICT DO NOTHING
CREATE TABLE upserted (a int PRIMARY KEY, b int)
INSERT INTO upserted SELECT i, i FROM generate_series(1, 150) i ON CONFLICT (a) DO UPDATE SET b = 0
INSERT INTO upserted SELECT i, i FROM generate_series(80, 230) i ON CONFLICT (a) DO UPDATE SET b = 0
ALTER TABLE upserted ADD c text DEFAULT 'added'
UPDATE upserted SET c = 'rewritten'

-- COPY: multi-insert, and frozen at once.
CREATE TABLE copied (a int)
COPY copied FROM PROGRAM 'seq 1 6000'
VACUUM copied
COPY copied FROM PROGRAM 'seq 1 2000'
DELETE FROM copied WHERE a % 10 = 0
VACUUM copied
BEGIN
CREATE TABLE copied_frozen (a int)
COPY copied_frozen FROM PROGRAM 'seq 1 3000' WITH (FREEZE)
COMMIT
DELETE FROM copied_frozen WHERE a % 100 = 1
UPDATE copied_frozen SET a = -a WHERE a % 100 = 2

-- Hash: overflow pages, bitmap pages, splits, squeezing.
CREATE TABLE hashed (k int, t text)
CREATE INDEX hashed_k ON hashed USING hash (k)
CREATE INDEX hashed_t ON hashed USING hash (t)
INSERT INTO hashed SELECT i, md5((i % 150)::text) FROM generate_series(1, 3000) i
DELETE FROM hashed WHERE k % 3 <> 0
VACUUM hashed
INSERT INTO hashed SELECT i, md5((i % 20)::text) FROM generate_series(1, 1500) i
DELETE FROM hashed
VACUUM hashed
INSERT INTO hashed SELECT i, 'equal' FROM generate_series(1, 2000) i
DELETE FROM hashed WHERE k % 3 = 0
VACUUM hashed
DELETE FROM hashed WHERE k % 2 = 0
VACUUM hashed
DELETE FROM hashed WHERE k % 5 <> 1
VACUUM hashed
INSERT INTO hashed SELECT i, md5(i::text) FROM generate_series(1, 800) i

-- Hash once more: squeezing that only locks a page, splits over images, more than 512 buckets. Where nothing new happens no images are logged.
-- Hash: an overflow page without tuples between others is freed while tuples move to a page that is neither its neighbour nor the primary one.
CREATE TABLE squeezed (k int) WITH (fillfactor = 10)
CREATE INDEX squeezed_k ON squeezed USING hash (k) WITH (fillfactor = 10)
INSERT INTO squeezed SELECT 1 FROM generate_series(1, 405)
BEGIN
INSERT INTO squeezed SELECT 1 FROM generate_series(1, 1700)
ROLLBACK
INSERT INTO squeezed SELECT 1 FROM generate_series(1, 50)
CHECKPOINT
VACUUM squeezed
-- All of them at once: the primary page takes no tuples and is only locked.
INSERT INTO squeezed SELECT 1 FROM generate_series(1, 1000)
DELETE FROM squeezed
VACUUM squeezed

-- Hash: more than 512 buckets, where a doubling has four phases. An index that starts with them, and one that grows past them.
CREATE TABLE started (k int)
INSERT INTO started SELECT generate_series(1, 100)
VACUUM started
UPDATE pg_class SET reltuples = 400000 WHERE relname = 'started'
CREATE INDEX started_k ON started USING hash (k)
INSERT INTO started SELECT generate_series(1, 100)
CREATE TABLE phased (k int)
CREATE INDEX phased_k ON phased USING hash (k) WITH (fillfactor = 10)
SET wal_consistency_checking = ''
INSERT INTO phased SELECT generate_series(1, 20400)
RESET wal_consistency_checking
INSERT INTO phased SELECT generate_series(1, 200)
SET wal_consistency_checking = ''
INSERT INTO phased SELECT generate_series(1, 5000)
RESET wal_consistency_checking
INSERT INTO phased SELECT generate_series(1, 100)
CHECKPOINT
INSERT INTO phased SELECT generate_series(1, 45)
DELETE FROM phased WHERE k % 17 = 0
VACUUM phased

-- BRIN: a second revmap page, for which a page with summaries is cleared.

-- GIN: pending list, posting trees and their vacuum.
CREATE TABLE tagged (id int, tags int[], words tsvector)
CREATE INDEX tagged_tags ON tagged USING gin (tags) WITH (fastupdate = on)
CREATE INDEX tagged_words ON tagged USING gin (words) WITH (fastupdate = off)
INSERT INTO tagged SELECT i, ARRAY[i % 10, i % 100, i], to_tsvector('simple', md5(i::text) || ' common w' || i % 50) FROM generate_series(1, 1200) i
VACUUM tagged
UPDATE tagged SET tags = tags || 7 WHERE id % 4 = 0
DELETE FROM tagged WHERE id % 3 = 0
VACUUM tagged
INSERT INTO tagged SELECT i, ARRAY[1, 2, 3], to_tsvector('simple', 'common') FROM generate_series(1, 1500) i
SELECT gin_clean_pending_list('tagged_tags')
DELETE FROM tagged WHERE id > 500
VACUUM tagged
DELETE FROM tagged
VACUUM tagged
INSERT INTO tagged SELECT i, ARRAY[i % 5], to_tsvector('simple', 'z' || i) FROM generate_series(1, 500) i
CREATE TABLE posting (id int)
COPY posting FROM PROGRAM 'seq 1 30000'
CREATE INDEX posting_id ON posting USING gin ((ARRAY[id % 2])) WITH (fastupdate = off)
DELETE FROM posting WHERE id BETWEEN 4000 AND 26000
VACUUM posting
INSERT INTO posting SELECT i FROM generate_series(1, 300) i

-- GIN once more: posting trees that are made by growing and lose pages, lists that hold tuples of several pages.
CREATE TABLE tree (id int, k int[]) WITH (autovacuum_enabled = off)
INSERT INTO tree SELECT i, CASE WHEN i % 40 = 0 THEN '{2}' WHEN i % 11 = 3 THEN '{3,4}' ELSE '{1,4}' END::int[] FROM generate_series(1, 25500) i
CREATE INDEX tree_off ON tree USING gin (k) WITH (fastupdate = off)
CREATE INDEX tree_on ON tree USING gin (k) WITH (fastupdate = on)
INSERT INTO tree SELECT i, '{3}' FROM generate_series(1, 250) i
DELETE FROM tree WHERE k = '{2}' AND id < 16000
VACUUM tree
INSERT INTO tree SELECT i, '{1,4}' FROM generate_series(1, 300) i
SELECT gin_clean_pending_list('tree_on')
DELETE FROM tree WHERE ctid BETWEEN '(35,0)' AND '(140,0)' OR id % 7 = 0 OR id BETWEEN 3000 AND 3600
VACUUM tree
INSERT INTO tree SELECT i, ARRAY[1 + i % 3, 4] FROM generate_series(1, 300) i
VACUUM tree
CREATE TABLE deep_keys (k text[])
CREATE INDEX deep_keys_k ON deep_keys USING gin (k) WITH (fastupdate = off)
INSERT INTO deep_keys SELECT ARRAY[(SELECT string_agg(md5(i || ' ' || j), '') FROM generate_series(1, 60) j)] FROM generate_series(1, 60) i
DELETE FROM deep_keys
VACUUM deep_keys
CREATE TABLE listed (k int[])
CREATE INDEX listed_k ON listed USING gin (k) WITH (fastupdate = on)
INSERT INTO listed SELECT ARRAY[i, i + 1] FROM generate_series(1, 5) i
INSERT INTO listed SELECT array_agg(i) FROM generate_series(1, 1500) i
INSERT INTO listed SELECT ARRAY[i, i + 1] FROM generate_series(1, 5) i
VACUUM listed

-- GiST: splits, page deletion.
CREATE TABLE located (p point, r int4range)
CREATE INDEX located_p ON located USING gist (p)
CREATE INDEX located_r ON located USING gist (r)
INSERT INTO located SELECT point(i % 100, (i * 7) % 103), int4range(i, i + 10) FROM generate_series(1, 2000) i
DELETE FROM located WHERE p[0] < 60
VACUUM located
INSERT INTO located SELECT point(i, i), int4range(i, i + 1) FROM generate_series(1, 800) i
DELETE FROM located
VACUUM located
VACUUM located
INSERT INTO located SELECT point(i, i), int4range(i, i + 1) FROM generate_series(1, 400) i

-- GiST: splits of inner pages, which complete those of their children. Tuples of 1000 bytes, so that few rows make three levels.
CREATE TYPE textrange AS RANGE (subtype = text)
CREATE FUNCTION noise(seed int, words int) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT string_agg(md5(seed || ''/'' || j), '''') FROM generate_series(1, words) j'
CREATE TABLE nested (r textrange)
CREATE INDEX nested_r ON nested USING gist (r)
INSERT INTO nested SELECT textrange(noise(i, 10), noise(i, 10) || noise(-i, 20)) FROM generate_series(1, 250) i
DELETE FROM nested WHERE lower(r) < '8'
VACUUM nested
INSERT INTO nested SELECT textrange(noise(i, 10), noise(i, 10) || noise(-i, 20)) FROM generate_series(251, 330) i

-- SP-GiST: leaf moves, picksplit, tuple splits, redirects.
CREATE TABLE partitioned (p point, t text)
CREATE INDEX partitioned_quad ON partitioned USING spgist (p)
CREATE INDEX partitioned_kd ON partitioned USING spgist (p kd_point_ops)
CREATE INDEX partitioned_text ON partitioned USING spgist (t)
INSERT INTO partitioned SELECT point((i * 37) % 1000, (i * 91) % 1000), md5(i::text) FROM generate_series(1, 1500) i
INSERT INTO partitioned SELECT point(1, 1), repeat('abc', 30) || i FROM generate_series(1, 400) i
DELETE FROM partitioned WHERE p[0] < 500
VACUUM partitioned
INSERT INTO partitioned SELECT point(i, i), 'zz' || i FROM generate_series(1, 500) i
VACUUM partitioned
CREATE TABLE prefixed (t text)
CREATE INDEX prefixed_t ON prefixed USING spgist (t)
INSERT INTO prefixed SELECT repeat('a', 60) || md5(i::text) FROM generate_series(1, 500) i
INSERT INTO prefixed SELECT repeat('a', 20) || 'b' || i FROM generate_series(1, 20) i
INSERT INTO prefixed SELECT repeat('a', 5) || 'c' || i FROM generate_series(1, 20) i
INSERT INTO prefixed SELECT 'other' || i FROM generate_series(1, 20) i
CREATE TABLE rooted (p point)
CREATE INDEX rooted_p ON rooted USING spgist (p)
INSERT INTO rooted SELECT point(i, i) FROM generate_series(1, 30) i
DELETE FROM rooted WHERE p[0] > 10
VACUUM rooted

-- SP-GiST: inner tuples that grow until they have to move to another page, as does their parent.
CREATE FUNCTION symbol(i int) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT chr(CASE WHEN i < 128 THEN i WHEN i < 158 THEN 128 + (i - 128) * 64 ELSE 4096 * (i - 157) END)'
CREATE TABLE growing (t text)
CREATE INDEX growing_t ON growing USING spgist (t)
INSERT INTO growing SELECT 'B' || repeat(md5(i::text), 10) FROM generate_series(1, 40) i
INSERT INTO growing SELECT 'A' || j || symbol(i) || repeat(md5(i::text), 10) FROM generate_series(1, 3) j, generate_series(1, 40) i
INSERT INTO growing SELECT 'A' || j || symbol(i) || md5(i::text) FROM generate_series(1, 3) j, generate_series(41, 172) i
INSERT INTO growing SELECT 'A4' || symbol(i) || repeat(md5(i::text), 10) FROM generate_series(1, 40) i
INSERT INTO growing SELECT 'A4' || symbol(i) || md5(i::text) FROM generate_series(41, 120) i
INSERT INTO growing SELECT 'A' || symbol(i) || md5(i::text) FROM generate_series(60, 150) i
INSERT INTO growing SELECT 'A4' || symbol(i) || md5(i::text) FROM generate_series(121, 172) i
DELETE FROM growing WHERE t < 'A3'
VACUUM growing

-- SP-GiST: chains that died come to life again, in place, and on another page when theirs has filled up meanwhile.
CREATE TABLE revived (t text)
CREATE INDEX revived_t ON revived USING spgist (t)
INSERT INTO revived SELECT chr(65 + i % 50) || md5(i::text) || md5(i::text) FROM generate_series(1, 2000) i
DELETE FROM revived WHERE ascii(t) % 2 = 0
VACUUM revived
INSERT INTO revived SELECT chr(65 + i % 50) || md5((-i)::text) FROM generate_series(1, 200) i WHERE (65 + i % 50) % 4 = 0
INSERT INTO revived SELECT chr(65 + i % 50) || md5((-i)::text) || md5(i::text) FROM generate_series(1, 3000) i WHERE (65 + i % 50) % 2 = 1
INSERT INTO revived SELECT chr(65 + i % 50) || repeat(md5((-i)::text), 20) FROM generate_series(1, 200) i WHERE (65 + i % 50) % 4 = 2

-- SP-GiST: the tree of nulls.
CREATE TABLE absent (p point)
CREATE INDEX absent_p ON absent USING spgist (p)
INSERT INTO absent SELECT NULL FROM generate_series(1, 1200) i
DELETE FROM absent WHERE ctid < '(3,0)'
VACUUM absent
INSERT INTO absent SELECT NULL FROM generate_series(1, 500) i

-- BRIN: three kinds of operator class, summaries that grow, move and go.
CREATE TABLE ranged (a int, b int, pad text) WITH (fillfactor = 50)
CREATE INDEX ranged_a ON ranged USING brin (a) WITH (pages_per_range = 2, autosummarize = off)
CREATE INDEX ranged_b ON ranged USING brin (b int4_bloom_ops) WITH (pages_per_range = 1)
CREATE INDEX ranged_m ON ranged USING brin (a int4_minmax_multi_ops) WITH (pages_per_range = 1)
INSERT INTO ranged SELECT i, i % 97, repeat('p', 100) FROM generate_series(1, 1500) i
SELECT brin_summarize_new_values('ranged_a'), brin_summarize_new_values('ranged_b'), brin_summarize_new_values('ranged_m')
UPDATE ranged SET a = a + 100000 WHERE a % 50 = 0
INSERT INTO ranged SELECT i, i % 997, repeat('p', 100) FROM generate_series(2000, 3200) i
VACUUM ranged
SELECT brin_desummarize_range('ranged_a', 4), brin_desummarize_range('ranged_b', 3)
SELECT brin_summarize_range('ranged_a', 4)
DELETE FROM ranged WHERE a % 2 = 0
VACUUM ranged
UPDATE ranged SET a = -a WHERE a % 3 = 0

-- BRIN: a second page of the map, and pages that make way for it.
CREATE TABLE mapped (a int, pad text)
ALTER TABLE mapped ALTER pad SET STORAGE PLAIN
SET wal_consistency_checking = ''
INSERT INTO mapped SELECT i, repeat('p', 4200) FROM generate_series(1, 1358) i
RESET wal_consistency_checking
CREATE INDEX mapped_a ON mapped USING brin (a) WITH (pages_per_range = 1)
CREATE INDEX mapped_p ON mapped USING brin (pad) WITH (pages_per_range = 1)
INSERT INTO mapped SELECT i, repeat('q', 4200) FROM generate_series(1, 8) i
VACUUM mapped
UPDATE mapped SET a = -a WHERE a % 100 = 1
SELECT brin_desummarize_range('mapped_a', 1362)

-- Generic records of an extension.
CREATE EXTENSION bloom
CREATE TABLE bloomed (a int, b int, t text)
CREATE INDEX bloomed_all ON bloomed USING bloom (a, b, t) WITH (length = 80, col1 = 2, col2 = 4, col3 = 3)
INSERT INTO bloomed SELECT i, i % 100, md5(i::text) FROM generate_series(1, 1200) i
DELETE FROM bloomed WHERE a % 3 = 0
VACUUM bloomed
INSERT INTO bloomed SELECT i, 1, 'q' FROM generate_series(1, 300) i

-- Dead index entries found by scans and deleted on insertion: B-tree, hash and GiST.
CREATE TABLE revisited (k int, p point)
CREATE INDEX revisited_p ON revisited USING gist (p)
CREATE INDEX revisited_h ON revisited USING hash (k)
CREATE INDEX revisited_b ON revisited (k)
INSERT INTO revisited SELECT i % 4, point(i % 7, i % 11) FROM generate_series(1, 1200) i
DELETE FROM revisited WHERE p[0] < 5
DELETE FROM revisited WHERE k = 1
SET enable_seqscan = off
SET enable_bitmapscan = off
SELECT count(*) FROM revisited WHERE k = 1
SELECT count(*) FROM revisited WHERE k = 2
SELECT count(*) FROM revisited WHERE p <@ box '((-1,-1),(20,20))'
DROP INDEX revisited_b
SELECT count(*) FROM revisited WHERE k = 1
SELECT count(*) FROM revisited WHERE k = 2
INSERT INTO revisited SELECT i % 4, point(i % 7, i % 11) FROM generate_series(1, 1500) i
RESET enable_seqscan
RESET enable_bitmapscan

-- Init forks, whole relations logged as images, rewriting.
CREATE UNLOGGED TABLE unlogged (a int PRIMARY KEY)
CREATE INDEX ON unlogged USING gin ((ARRAY[a]))
CREATE INDEX ON unlogged USING hash (a)
CREATE INDEX ON unlogged USING gist ((point(a, a)))
CREATE INDEX ON unlogged USING spgist ((point(a, a)))
CREATE INDEX ON unlogged USING brin (a)
INSERT INTO unlogged SELECT i FROM generate_series(1, 100) i
CREATE TABLE rebuilt AS SELECT i AS a, md5(i::text) AS b FROM generate_series(1, 2500) i
CREATE INDEX ON rebuilt USING gist ((point(a, a)))
CREATE INDEX ON rebuilt USING gin ((ARRAY[a]))
CREATE INDEX ON rebuilt USING hash (a)
CREATE INDEX ON rebuilt USING brin (a)
CREATE INDEX ON rebuilt USING spgist (b)
CREATE INDEX rebuilt_b ON rebuilt (b)
CLUSTER rebuilt USING rebuilt_b
VACUUM FULL rebuilt
REINDEX TABLE rebuilt
TRUNCATE rebuilt
INSERT INTO rebuilt SELECT i, 'new' FROM generate_series(1, 100) i

-- Pruning of pages that are updated again and again.
CREATE TABLE counter (id int PRIMARY KEY, n int) WITH (fillfactor = 60)
INSERT INTO counter SELECT i, 0 FROM generate_series(1, 150) i
DO $$ BEGIN FOR k IN 1..25 LOOP UPDATE counter SET n = n + 1 WHERE id <= 50; COMMIT; END LOOP; END $$

-- Files that shrink and grow again.
CREATE TABLE shrunk (a int, pad text)
INSERT INTO shrunk SELECT i, repeat('y', 200) FROM generate_series(1, 1500) i
VACUUM shrunk
DELETE FROM shrunk WHERE a > 200
VACUUM shrunk
INSERT INTO shrunk SELECT i, repeat('w', 200) FROM generate_series(1, 1000) i
VACUUM shrunk
DELETE FROM shrunk WHERE a > 50
VACUUM shrunk

-- Once more after a checkpoint: with full_page_writes the first change of each page is an image now.
CHECKPOINT
UPDATE account SET branch = branch + 1 WHERE id < 300
INSERT INTO scattered SELECT i FROM generate_series(1, 200) i
DELETE FROM copied WHERE a % 17 = 0
INSERT INTO hashed SELECT i, 'late' FROM generate_series(1, 150) i
INSERT INTO partitioned SELECT point(i, -i), 'q' || i FROM generate_series(1, 150) i
INSERT INTO located SELECT point(-i, i), int4range(i, i + 1) FROM generate_series(1, 150) i
INSERT INTO tagged SELECT i, ARRAY[i], to_tsvector('simple', 'late' || i) FROM generate_series(1, 150) i
UPDATE ranged SET b = b + 1 WHERE a % 9 = 1
UPDATE bloomed SET b = 3 WHERE a < 150
DELETE FROM posting WHERE id < 2000
VACUUM posting
VACUUM hashed
