"""The local stack: every service of the system as a supervised process on loopback (`make up`, `make down`)."""
