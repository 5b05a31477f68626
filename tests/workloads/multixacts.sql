-- Multixacts: rows locked by several sessions at once, locked and updated, rolled back in part, then frozen.
create table m (id int primary key, v int, pad text default repeat('m', 40));
insert into m select i, 0 from generate_series(1, 400) i;
create table child (id int, parent int references m (id));
--@ session a
begin;
select count(*) from (select * from m where id <= 300 for key share) q;
--@ session b
begin;
select count(*) from (select * from m where id <= 200 for key share) q;
--@ session c
begin;
select count(*) from (select * from m where id <= 100 for share) q;
--@ session d
begin;
update m set v = v + 1 where id between 201 and 300;
savepoint s;
update m set v = v + 1 where id between 301 and 350;
rollback to s;
commit;
--@ session b
update m set v = v + 10 where id between 201 and 250;
insert into child select i, i from generate_series(1, 100) i;
commit;
--@ session e
begin;
select count(*) from (select * from m where id between 150 and 300 for share) q;
--@ session c
rollback;
--@ session a
commit;
--@ session e
commit;
--@ session main
-- A locker of an updated row walks the chain to the newest version.
--@ session a
begin isolation level repeatable read;
select 1;
--@ session b
begin;
update m set v = v + 1 where id between 1 and 40;
update m set v = v + 1 where id between 1 and 40;
--@ session a
select count(*) from (select * from m where id between 1 and 40 for key share) q;
--@ session b
commit;
--@ session a
commit;
--@ session main
delete from m where id between 351 and 400;
vacuum m;
vacuum (freeze) m;
set vacuum_multixact_freeze_min_age = 0;
set vacuum_multixact_freeze_table_age = 0;
vacuum m;
