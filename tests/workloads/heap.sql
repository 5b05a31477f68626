-- Heap: insert, update in place of the page and elsewhere, delete, lock, prune, freeze, visibility bits, speculative insert.
create table t (id int, a int, b text, c timestamptz default now());
create index t_a on t (a);
create index t_b on t (b);
create unique index t_id on t (id);
insert into t select i, i % 50, repeat('x' || (i % 7), 20) from generate_series(1, 6000) i;
update t set a = a + 1 where id % 5 = 0;
update t set c = now() where id % 11 = 0;
delete from t where id % 3 = 0;
select count(*) from (select * from t where id % 7 = 1 for update) q;
select count(*) from (select * from t where id % 7 = 2 for share) q;
vacuum (freeze) t;
insert into t select i, i % 50, md5(i::text) from generate_series(6001, 8000) i;
update t set b = md5(b) where id between 100 and 900;
vacuum t;
-- Everything visible now: each of these clears bits of the visibility map.
delete from t where id % 101 = 0;
update t set c = now() where id % 103 = 0;
select count(*) from (select * from t where id % 107 = 0 for update) q;
insert into t select i, 0, 'fills holes' from generate_series(8001, 8200) i;
vacuum t;
-- Rolled back: the pages keep what was done, CLOG says it was not.
begin;
insert into t select i, 1, 'rolled back' from generate_series(9001, 9100) i;
update t set a = a + 1 where id between 100 and 200;
delete from t where id between 201 and 300;
rollback;
-- Rows that were updated and locked in one transaction.
begin;
update t set c = now() where id between 301 and 400;
savepoint s;
select count(*) from (select * from t where id between 301 and 400 for update) q;
rollback to s;
select count(*) from (select * from t where id between 301 and 420 for no key update) q;
commit;
-- Pruned by readers: many versions of few rows on few pages.
create table pruned (id int primary key, n int, pad text) with (fillfactor = 60);
insert into pruned select i, 0, repeat('p', 50) from generate_series(1, 300) i;
do $$ begin for round in 1..30 loop update pruned set n = n + 1 where id <= 60; commit; end loop; end $$;
select sum(n) from pruned;
-- Inserted twice: speculative insertion, confirmed or killed.
create table once (id int primary key, v text);
insert into once select i, 'first' from generate_series(1, 200) i on conflict (id) do nothing;
insert into once select i, 'second' from generate_series(100, 300) i on conflict (id) do update set v = excluded.v;
-- A wide row moves to a page of its own: update with initialisation of the new page.
create table wide (id int, v text) with (fillfactor = 100);
alter table wide alter v set storage plain;
insert into wide select i, repeat('w', 3900) from generate_series(1, 40) i;
update wide set v = repeat('v', 7000) where id % 4 = 0;
-- The tail goes away, then comes back.
delete from t where id > 500;
vacuum t;
vacuum t;
insert into t select i, i, 'again' from generate_series(20001, 22000) i;
analyze t;
