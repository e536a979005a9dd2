# check=skip=all
# escape=`
FROM a`
:1
