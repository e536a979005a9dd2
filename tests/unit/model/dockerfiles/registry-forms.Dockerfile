FROM registry.example.org:5000/team/a/b:1.0-rc_1 AS one
FROM ghcr.io/x/y@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef AS two
FROM [::1]:5000/z:1 AS three
FROM a/b__c-d.e
