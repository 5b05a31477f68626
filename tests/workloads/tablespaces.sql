-- Tablespaces: tables, indexes and databases in them, moved out of and into them, dropped.
set allow_in_place_tablespaces = on;
create tablespace "{run}_a" location '';
create tablespace "{run}_b" location '';
create table moved (id int primary key, v text) tablespace "{run}_a";
insert into moved select i, md5(i::text) from generate_series(1, 3000) i;
create index moved_v on moved (v) tablespace "{run}_b";
alter table moved set tablespace "{run}_b";
update moved set v = 'x' where id % 5 = 0;
alter index moved_v set tablespace "{run}_a";
alter table moved set tablespace pg_default;
create table stays (id int primary key using index tablespace "{run}_a", v text) tablespace "{run}_a";
insert into stays select i, repeat('s', 100) from generate_series(1, 1000) i;
create database "{run}_there" template template0 tablespace "{run}_b";
--@ session there {run}_there
create table inside (id int);
insert into inside select i from generate_series(1, 1000) i;
--@ close there
--@ session main
-- A backup may miss both of its directories: PostgreSQL recovers from it without the database (dbcommands.c, dbase_redo).
--@ no backup
alter database "{run}_there" set tablespace pg_default;
alter index moved_v set tablespace pg_default;
drop tablespace "{run}_b";
