-- Btree: splits to both sides, roots, deduplication, posting list splits, bottom-up and simple deletion, page deletion, reuse.
create table dup (id int, k int, t text);
create index dup_k on dup (k);
create index dup_t on dup (t);
insert into dup select i, i % 10, 'value ' || (i % 5) from generate_series(1, 12000) i;
delete from dup where id % 3 = 0;
vacuum dup;
insert into dup select i, i % 10, 'value ' || (i % 5) from generate_series(1, 4000) i;
-- Not in order: splits in the middle, and to the right of what goes on at the end.
create table mid (k int);
create index mid_k on mid (k);
insert into mid select (i * 7919) % 20000 from generate_series(1, 9000) i;
delete from mid where k between 2000 and 15000;
vacuum mid;
vacuum mid;
insert into mid select i from generate_series(2000, 4000) i;
insert into mid select -i from generate_series(1, 3000) i;
-- Left to one page: the fast root moves; then the deleted pages are used again.
create table fast (a int);
create index fast_a on fast (a);
insert into fast select i from generate_series(1, 3000) i;
delete from fast where a < 2990;
vacuum fast;
vacuum fast;
insert into fast select i from generate_series(3000, 6000) i;
delete from fast;
vacuum fast;
select count(txid_current()) from generate_series(1, 1);
vacuum fast;
insert into fast select i from generate_series(1, 6000) i;
-- Wide keys: three levels.
create table deep (a text);
create index deep_a on deep (a);
insert into deep select repeat(md5(i::text), 30) || i from generate_series(1, 900) i;
delete from deep where ctid < '(10,1)';
vacuum deep;
insert into deep select md5((i * 3)::text) || repeat(md5(i::text), 25) from generate_series(1, 300) i;
-- Versions churn: bottom-up deletion before a split, and dead entries marked by readers.
create table churn (id int primary key, a int, b int) with (fillfactor = 90, autovacuum_enabled = off);
create index churn_a on churn (a);
create index churn_b on churn (b);
insert into churn select i, i % 20, i from generate_series(1, 1000) i;
do $$ begin for round in 1..25 loop update churn set b = b + 1 where id <= 200; commit; end loop; end $$;
delete from churn where a = 3;
set enable_seqscan = off;
set enable_bitmapscan = off;
select count(*) from churn where a = 3;
select count(*) from churn where a = 3;
insert into churn select i, 3, i from generate_series(2001, 3500) i;
reset enable_seqscan;
reset enable_bitmapscan;
-- Unique, with duplicates that are dead; backwards scans; rebuilds.
create unique index churn_u on churn (id) include (a);
update churn set id = id + 100000 where id % 2 = 0;
vacuum churn;
reindex index churn_a;
reindex index concurrently churn_b;
create index concurrently churn_c on churn ((a * 2));
drop index churn_c;
