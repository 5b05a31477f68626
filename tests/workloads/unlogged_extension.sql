-- An unlogged relation with an index of an extension, and an unlogged sequence (from 15).
--@ requires extension bloom
create unlogged table ub (a int);
create index ub_a on ub using bloom (a);
insert into ub select i from generate_series(1, 500) i;
--@ version 15
create unlogged sequence us;
--@ version 15
select count(nextval('us')) from generate_series(1, 100);
--@ version 15
alter sequence us set logged;
