-- Databases come and go: both strategies (copying files with a checkpoint, or logging every block), with content, dropped.
create database "{run}_plain" template template0;
--@ session inside {run}_plain
create table inside (id int primary key, v text);
insert into inside select i, md5(i::text) from generate_series(1, 2000) i;
create index inside_v on inside using hash (v);
--@ close inside
--@ session main
create database "{run}_copied" template "{run}_plain";
--@ session inside2 {run}_copied
update inside set v = 'copied' where id % 2 = 0;
vacuum inside;
--@ close inside2
--@ session main
--@ version 15
create database "{run}_files" template "{run}_plain" strategy file_copy;
--@ version 15
create database "{run}_blocks" template "{run}_plain" strategy wal_log;
alter database "{run}_plain" rename to "{run}_renamed";
drop database "{run}_copied";
--@ version 15
drop database "{run}_files";
