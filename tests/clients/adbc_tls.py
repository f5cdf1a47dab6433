"""Asks over Flight SQL with TLS and a bearer token, as a BI tool would be configured."""

import sys

import adbc_driver_flightsql.dbapi as flight
from adbc_driver_flightsql import DatabaseOptions

url, authority, token = sys.argv[1:]
with open(authority, encoding="utf-8") as file:
    roots = file.read()
options = {
    DatabaseOptions.TLS_ROOT_CERTS.value: roots,
    DatabaseOptions.AUTHORIZATION_HEADER.value: f"Bearer {token}",
}
with flight.connect(url, db_kwargs=options) as connection:
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) AS n FROM ledger")
        ((count,),) = cursor.fetchall()
        assert count > 0
print("ok")
