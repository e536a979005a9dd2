FROM deb\
ian:1\
2
RU\
N true
