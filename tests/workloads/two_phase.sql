-- Two-phase commit: prepared, kept over a checkpoint (which writes its file), committed and rolled back from elsewhere;
-- with subtransactions, dropped tables, locks and notifications.
create table tp (id int primary key, v text);
insert into tp select i, 'before' from generate_series(1, 200) i;
create table tp_dropped (id int);
insert into tp_dropped select i from generate_series(1, 500) i;
--@ session a
begin;
update tp set v = 'prepared a' where id <= 50;
savepoint s;
insert into tp select i, 'subtransaction' from generate_series(1001, 1050) i;
release s;
prepare transaction '{run} a';
--@ session b
begin;
update tp set v = 'prepared b' where id between 51 and 100;
drop table tp_dropped;
prepare transaction '{run} b';
--@ session c
begin;
create table tp_new (id int);
insert into tp_new select i from generate_series(1, 300) i;
select count(*) from (select * from tp where id between 101 and 150 for update) q;
prepare transaction '{run} c';
checkpoint;
insert into tp values (5000, 'between');
--@ session d
commit prepared '{run} a';
rollback prepared '{run} b';
commit prepared '{run} c';
begin;
delete from tp where id < 10;
prepare transaction '{run} short';
commit prepared '{run} short';
begin;
insert into tp select i, repeat('state', 50) from generate_series(2000, 2500) i;
prepare transaction '{run} gone';
rollback prepared '{run} gone';
vacuum tp;
